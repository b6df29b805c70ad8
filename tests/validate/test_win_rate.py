"""Win rates: the plain one, and the one between outputs of the same length."""

from __future__ import annotations

import json
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import approx_fprime
from scipy.special import expit, logit
from scipy.stats import binomtest

import logistic_golden
from camelpress.core.errors import ToolProblem
from camelpress.validate.judge.judge_prompt import JudgePrompt, OutputPair
from camelpress.validate.judge.pairwise import Preference
from camelpress.validate.judge.win_rate import (
    PRIOR_SD,
    fit_logistic,
    length_controlled_win_rate,
    win_rate,
)
from refusal import refusal


def _verdict(
    name: int, candidate: int, reference: int, *, first: bool, won: float | None
) -> Preference:
    """On outputs of so many characters."""
    pair = OutputPair(str(name), "Do.", "c" * candidate, "r" * reference)
    return Preference(JudgePrompt(pair, first), won)


def test_the_figures_of_a_few_verdicts() -> None:
    verdicts = [
        _verdict(1, 30, 10, first=True, won=1.0), _verdict(1, 30, 10, first=False, won=1.0),
        _verdict(2, 10, 10, first=True, won=1.0), _verdict(2, 10, 10, first=False, won=0.0),
        _verdict(3, 10, 20, first=False, won=0.0), _verdict(3, 10, 20, first=True, won=0.0),
        _verdict(4, 5, 5, first=True, won=0.5), _verdict(4, 5, 5, first=False, won=0.5),
        _verdict(5, 5, 9, first=False, won=None), _verdict(5, 5, 9, first=True, won=1.0),
    ]  # fmt: skip
    told = win_rate(verdicts)
    assert told.win_rate.mean == pytest.approx(5 / 9)
    assert (told.win_rate.n, told.win_rate.clusters) == (9, 5)
    assert told.characters == pytest.approx((20 + 20 + 0 + 0 - 10 - 10 + 0 + 0 - 4) / 9)
    assert told.draws == 2
    assert told.first_shown == pytest.approx((1 + 0 + 1 + 1 + 1 + 0 + 1) / 7)
    assert told.agreement == pytest.approx(3 / 4)
    assert told.invalid == 1
    assert told.win_rate.interval is not None
    assert told.length_controlled.interval is None  # lengths and order foretell all of these few


@pytest.mark.parametrize("won", [0.0, 0.5, 1.0])
def test_equal_verdicts_have_the_exact_interval_of_so_many_pairs(won: float) -> None:
    told = win_rate([_verdict(n, n, 3, first=bool(n % 2), won=won) for n in range(9)])
    assert told.win_rate.mean == won
    assert told.length_controlled.mean == pytest.approx(won, abs=0.02)
    assert told.length_controlled.interval is None
    if won != 0.5:
        exact = binomtest(int(9 * won), 9).proportion_ci(0.95, method="exact")
        assert told.win_rate.interval == pytest.approx((exact.low, exact.high))
    assert told.win_rate.interval is not None and told.win_rate.high - told.win_rate.low > 0.3


def test_one_verdict_is_a_figure_without_an_interval() -> None:
    told = win_rate([_verdict(1, 5, 3, first=True, won=1.0)])
    assert (told.win_rate.mean, told.win_rate.low, told.win_rate.high) == (1.0, -inf, inf)
    assert told.agreement is None


def test_no_verdict_is_no_figure() -> None:
    with refusal(
        ToolProblem,
        "the judge gave no readable verdict",
        next_step="use another judge model",
        out=None,
    ):
        win_rate([_verdict(1, 5, 3, first=True, won=None)])


def test_regression_and_errors_are_those_of_statsmodels() -> None:
    golden = json.loads(logistic_golden.GOLDEN.read_text(encoding="utf-8"))
    told = logistic_golden.verdicts()
    longer = told["longer"]
    terms = [np.ones_like(longer), np.tanh(longer / longer.std(ddof=1)), told["first"] - 0.5]
    design = np.stack(terms, axis=1)
    coefficients, errors = fit_logistic(design, told["won"], told["pair"], prior=inf)
    np.testing.assert_allclose(coefficients, golden["coefficients"], rtol=1e-6)
    np.testing.assert_allclose(errors, golden["errors"], rtol=1e-6)
    controlled = length_controlled_win_rate(told["won"], longer, told["first"], told["pair"])
    assert controlled.mean == pytest.approx(expit(golden["coefficients"][0]), abs=1e-5)
    width = logit(controlled.high) - logit(controlled.low)
    assert width / golden["errors"][0] == pytest.approx(2 * 2.001, rel=5e-3)  # Student's t of 59


def test_length_is_taken_out_of_the_figure() -> None:
    """A judge that likes length by half a unit of logit, and a candidate that is long."""
    draw = np.random.default_rng(0)
    longer = draw.normal(600, 400, 4000)
    first = draw.integers(0, 2, len(longer)).astype(float)
    logits = -0.4 + 1.5 * np.tanh(longer / longer.std(ddof=1)) + 0.6 * (first - 0.5)
    won = (draw.random(len(longer)) < expit(logits)).astype(float)
    told = length_controlled_win_rate(won, longer, first, np.arange(len(longer)))
    assert won.mean() > 0.6
    assert told.low < expit(-0.4) < told.high
    assert told.high - told.low < 0.12


def test_where_lengths_foretell_every_verdict_nothing_bounds_the_figure() -> None:
    longer = np.array([-300.0, -20.0, 15.0, 800.0, 0.0])
    won = np.array([0.0, 0.0, 1.0, 1.0, 0.5])
    told = length_controlled_win_rate(won, longer, np.ones(5), np.arange(5))
    assert told.mean == pytest.approx(0.5, abs=0.1) and told.interval is None
    won[0] = 1.0
    assert length_controlled_win_rate(won, longer, np.ones(5), np.arange(5)).interval is not None


def test_a_share_is_never_beyond_all() -> None:
    told = win_rate([_verdict(n, 5, 3, first=True, won=float(n > 0)) for n in range(5)])
    assert told.win_rate.interval is not None
    assert (
        told.win_rate.mean == pytest.approx(0.8)
        and 0 < told.win_rate.low < 0.8 < told.win_rate.high < 1
    )


def test_without_lengths_and_orders_it_is_the_win_rate() -> None:
    won = np.array([1.0, 1.0, 0.0, 0.5, 1.0])
    told = length_controlled_win_rate(won, np.zeros(5), np.ones(5), np.arange(5))
    assert told.mean == pytest.approx(won.mean(), abs=1e-4)


ROWS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(-2000, 2000), st.booleans()),
    min_size=2, max_size=40,
)  # fmt: skip


@settings(deadline=None, max_examples=30)
@given(ROWS)
def test_models_that_change_places_change_sides(rows: list[tuple[float, int, bool]]) -> None:
    won = np.array([row[0] for row in rows])
    longer = np.array([float(row[1]) for row in rows])
    first = np.array([float(row[2]) for row in rows])
    pair = np.arange(len(rows))
    told = length_controlled_win_rate(won, longer, first, pair)
    other = length_controlled_win_rate(1 - won, -longer, 1 - first, pair)
    assert told.mean == pytest.approx(1 - other.mean, abs=1e-6)
    assert told.low == pytest.approx(1 - other.high, abs=1e-5)


@settings(deadline=None, max_examples=30)
@given(ROWS)
def test_the_fit_is_the_maximum(rows: list[tuple[float, int, bool]]) -> None:
    """The slope of the penalized likelihood, by differences, is zero there; it is concave."""
    won = np.array([row[0] for row in rows])
    design = np.array([[1.0, np.tanh(row[1] / 700), row[2] - 0.5] for row in rows])
    found, errors = fit_logistic(design, won, np.arange(len(rows)), prior=PRIOR_SD)

    def likelihood(terms: np.ndarray) -> float:
        chance = np.clip(expit(design @ terms), 1e-300, 1)
        other = np.clip(expit(-design @ terms), 1e-300, 1)
        penalty = (terms**2).sum() / (2 * PRIOR_SD**2)
        return float((won * np.log(chance) + (1 - won) * np.log(other)).sum() - penalty)

    np.testing.assert_allclose(approx_fprime(found, likelihood, 1e-6), 0, atol=1e-3)
    assert np.isfinite(errors).all()
