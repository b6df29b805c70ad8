"""Paired tests keep their size, their power and their published formulas."""

from __future__ import annotations

import math
from collections import Counter
from itertools import product

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from camelpress.validate.statistics.paired_tests import (
    detectable_loss,
    holm_adjust,
    mcnemar_p_value,
    tango_interval,
)

RUNS = 2000
WITHIN = 3.3  # standard errors that a share of so many runs may be off: one test in a thousand


def drawn(n: int, flips: float, loss: float, runs: int = RUNS) -> list[tuple[int, int]]:
    """How many of n items are lost and won, again and again."""
    shares = [(flips + loss) / 2, (flips - loss) / 2, 1 - flips]
    draw = np.random.default_rng(2025)
    return [(int(lost), int(won)) for lost, won, _ in draw.multinomial(n, shares, size=runs)]


def sure(share: float) -> float:
    return WITHIN * math.sqrt(share * (1 - share) / RUNS)


# fmt: off
@pytest.mark.parametrize(
    ("n", "flips", "loss"),
    [(164, 0.08, 0.02), (1319, 0.10, 0.01), (1172, 0.05, 0.01), (1172, 0.02, 0.0), (40, 0.2, 0.1)],
)
# fmt: on
def test_a_loss_at_the_margin_is_passed_once_in_forty(n: int, flips: float, loss: float) -> None:
    """The size of the test of non-inferiority, and how often the interval holds the truth.

    Counts are discrete: a score test may err by a little more than it says, which is half a per
    cent here, and by less.
    """
    passed = held = 0.0
    for counts, times in Counter(drawn(n, flips, loss)).items():
        low, high = tango_interval(n, *counts, confidence=0.95)
        passed += times * (high < loss) / RUNS
        held += times * (low <= loss <= high) / RUNS
    assert passed <= 0.025 + 0.005 + sure(0.025)
    assert 0.945 - sure(0.05) <= held <= 0.99


def test_the_usual_interval_would_promise_too_much() -> None:
    """mean ± z * se of few differences passes a loss at the margin far too often."""
    passed = 0
    for lost, won in drawn(164, 0.02, 0.02):
        mean = (lost - won) / 164
        error = math.sqrt(((lost + won) / 164 - mean**2) / 164)
        passed += mean + 1.96 * error < 0.02
    assert passed / RUNS > 0.06


def slow_score(n: int, lost: int, won: int, loss: float) -> float:
    """The same score with the likelihood maximized by search instead of solved."""

    def unlikely(winning: float) -> float:
        parts = [(lost, winning + loss), (won, winning), (n - lost - won, 1 - 2 * winning - loss)]
        return -sum(count * math.log(max(share, 1e-300)) for count, share in parts if count)

    bounds = (max(0.0, -loss), (1 - loss) / 2)
    winning = minimize_scalar(unlikely, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    return ((lost - won) / n - loss) / math.sqrt((2 * winning + loss - loss**2) / n)


@pytest.mark.parametrize(
    ("n", "lost", "won"), [(164, 5, 3), (50, 0, 4), (50, 9, 0), (1000, 120, 80), (30, 10, 10)]
)
def test_the_ends_are_where_the_score_reaches_its_quantile(n: int, lost: int, won: int) -> None:
    low, high = tango_interval(n, lost, won, confidence=0.95)
    reach = norm.ppf(0.975)
    assert slow_score(n, lost, won, high) == pytest.approx(-reach, rel=1e-4)
    assert slow_score(n, lost, won, low) == pytest.approx(reach, rel=1e-4)


def test_both_models_can_change_places() -> None:
    low, high = tango_interval(200, 12, 5, confidence=0.9)
    assert tango_interval(200, 5, 12, confidence=0.9) == pytest.approx((-high, -low))


@pytest.mark.parametrize("n", [1, 10, 164, 14042])
def test_no_difference_is_no_proof(n: int) -> None:
    low, high = tango_interval(n, 0, 0, confidence=0.95)
    square = norm.ppf(0.975) ** 2
    assert (-low, high) == pytest.approx((square / (n + square),) * 2)


@pytest.mark.parametrize(("lost", "won", "end"), [(7, 0, 1), (0, 7, 0)])
def test_all_lost_or_won_is_the_end_of_the_scale(lost: int, won: int, end: int) -> None:
    interval = tango_interval(7, lost, won, confidence=0.95)
    assert interval[end] == (1.0 if lost else -1.0)
    assert abs(interval[1 - end]) < 1


@pytest.mark.parametrize(
    ("n", "lost", "won"),
    [each for each in product((1, 2, 5, 9), range(10), range(10)) if sum(each[1:]) <= each[0]],
)
def test_every_small_table_has_an_interval(n: int, lost: int, won: int) -> None:
    low, high = tango_interval(n, lost, won, confidence=0.95)
    assert -1 <= low <= (lost - won) / n <= high <= 1


def test_the_exact_test_is_the_sum_of_the_binomial() -> None:
    for lost, won in ((9, 3), (0, 4), (5, 5), (20, 2)):
        tail = sum(math.comb(lost + won, k) for k in range(lost, lost + won + 1))
        assert mcnemar_p_value(lost, won) == pytest.approx(tail / 2 ** (lost + won))
    assert mcnemar_p_value(0, 0) == 1.0


@pytest.mark.parametrize(("n", "flips"), [(164, 0.08), (1172, 0.05), (10042, 0.03)])
def test_equal_models_are_accused_at_most_once_in_twenty(n: int, flips: float) -> None:
    found = sum(mcnemar_p_value(*counts) < 0.05 for counts in drawn(n, flips, 0.0)) / RUNS
    assert found <= 0.05 + sure(0.05)
    assert found > 0.015  # exact, so below; but not blind


def test_of_twenty_equal_tasks_one_is_accused_in_one_family_of_twenty() -> None:
    """Holm holds the error of the whole family; without it two families in three would fail."""
    families, size = RUNS // 2, 20
    alone = together = 0
    every = drawn(1172, 0.05, 0.0, runs=families * size)
    for start in range(0, len(every), size):
        told = [mcnemar_p_value(*counts) for counts in every[start : start + size]]
        alone += min(told) < 0.05
        together += min(holm_adjust(told)) < 0.05
    assert together / families <= 0.05 + WITHIN * math.sqrt(0.05 * 0.95 / families)
    assert alone / families > 0.4


def test_holm_is_that_of_the_paper() -> None:
    assert holm_adjust([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm_adjust([0.9, 0.8]) == [1.0, 1.0]
    assert holm_adjust([]) == []


# fmt: off
@pytest.mark.parametrize(
    ("n", "flips", "expected"),
    [(164, 0.05, 0.043), (1172, 0.02, 0.010), (1319, 0.10, 0.022), (10042, 0.05, 0.0055),
     (14042, 0.05, 0.0047)],
)
# fmt: on
def test_the_detectable_loss_is_that_of_the_paper(n: int, flips: float, expected: float) -> None:
    found = detectable_loss(n, flips, alpha=0.05)
    assert found == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize(("n", "flips"), [(1172, 0.05), (1319, 0.10), (10042, 0.03)])
def test_a_detectable_loss_is_found_four_times_in_five(n: int, flips: float) -> None:
    """By the exact test, which is a little weaker than the formula's."""
    loss = detectable_loss(n, flips, alpha=0.05)
    assert loss is not None
    found = sum(mcnemar_p_value(*counts) < 0.05 for counts in drawn(n, flips, loss)) / RUNS
    assert 0.75 <= found <= 0.85


@pytest.mark.parametrize(("n", "flips"), [(164, 0.02), (10, 0.1), (50, 0.0)])
def test_where_too_little_differs_no_loss_can_be_found(n: int, flips: float) -> None:
    assert detectable_loss(n, flips, alpha=0.05) is None
