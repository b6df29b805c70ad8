"""The card's average of two models, and an interval of its difference that holds what it says."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_1samp, ttest_ind

from camelpress.validate.benchmarks.averages import (
    CARD_COLUMNS,
    DeltaVariance,
    average_benchmarks,
    delta_variance,
    satterthwaite_interval,
)
from camelpress.validate.benchmarks.item_scores import ItemScores, item_influences, task_facts
from camelpress.validate.benchmarks.task_catalogue import BenchmarkSpec

CARDS = {  # of the columns, in the card's order, and its average
    "tulu-7b": ((44.5, 47.0, 6.0, 27.0, 38.1, 39.2, 45.7, 7.7, 17.5, 27.8, 48.3), 33.1),
    "tulu-30b": ((57.7, 58.4, 6.0, 51.0, 45.8, 48.7, 58.2, 12.3, 25.4, 46.0, 63.5), 44.7),
    "tulu-65b": ((59.2, 61.1, 9.0, 60.0, 48.1, 53.5, 51.8, 13.3, 28.9, 45.9, 62.7), 46.3),
}
NAMES = [name for name, count in CARD_COLUMNS.items() for _ in range(count)]
NO_PULLS: dict[str, dict[str, float]] = {
    f"task {place}": {"a": 0.0, "b": 0.0} for place in range(len(NAMES))
}
ITEMS = BenchmarkSpec(name="task", metric="acc")
PARTS = BenchmarkSpec(name="task", metric="f1", is_macro_average=True)


def card(scores: tuple[float, ...]) -> list[dict[str, Any]]:
    return [
        {
            "name": f"task {place}",
            "benchmark": name,
            "title": f"{name} {place}",
            "reference_accuracy": score / 100,
            "candidate_accuracy": score / 200,
        }
        for place, (name, score) in enumerate(zip(NAMES, scores, strict=True))
    ]


@pytest.mark.parametrize(("scores", "average"), CARDS.values(), ids=CARDS)
def test_the_average_is_the_cards(scores: tuple[float, ...], average: float) -> None:
    told = average_benchmarks(card(scores), NO_PULLS)
    assert told is not None and told["name"] == "Average" and told["complete"]
    assert told["missing"] == [] and [*told["benchmarks"]] == [*CARD_COLUMNS]
    assert 100 * told["reference"] == pytest.approx(average, abs=0.06)  # of rounded scores
    assert told["candidate"] == pytest.approx(told["reference"] / 2)
    assert told["delta"] == pytest.approx(told["candidate"] - told["reference"])


def test_what_is_not_there_is_no_zero_and_has_another_name() -> None:
    tasks = card(CARDS["tulu-65b"][0])
    told = average_benchmarks(tasks[:-1], NO_PULLS)  # without AlpacaFarm
    assert told is not None and told["name"] == "Mean of 5 of 6 benchmarks"
    assert not told["complete"] and told["missing"] == ["AlpacaFarm"]
    assert 100 * told["reference"] == pytest.approx(fmean([60.15, 34.5, 50.8, 32.55, 37.4]))
    half = average_benchmarks(tasks[1:], NO_PULLS)  # MMLU has lost a column
    assert half is not None and "MMLU" not in half["benchmarks"] and half["missing"] == ["MMLU"]
    assert average_benchmarks(tasks[:1], NO_PULLS) is None
    assert average_benchmarks([{"benchmark": None, "title": None}], {}) is None
    twice = average_benchmarks([*tasks, tasks[0]], NO_PULLS)
    assert twice is not None and twice["missing"] == ["MMLU"]


def test_one_column_has_students_interval_but_for_the_item_more() -> None:
    each = np.random.default_rng(0).choice([-1.0, 0.0, 0.0, 1.0], 4000)
    found = item_influences(ITEMS, [ItemScores("", 0.0, value) for value in each])
    low, high = bounds(each.mean(), [delta_variance([named(found)])])
    expected = ttest_1samp(each, 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high), rel=2e-3)


def test_two_benchmarks_have_welchs_interval_but_for_the_item_more() -> None:
    """scipy's is of a difference of two means; half of it, with a sign turned, is their mean's."""
    draw = np.random.default_rng(1)
    first, second = draw.normal(0.1, 2.0, 900), draw.normal(-0.1, 1.0, 700)
    spreads = [
        delta_variance(
            [named(item_influences(ITEMS, [ItemScores("", 0.0, value) for value in each]))]
        )
        for each in (first, second)
    ]
    low, high = bounds((first.mean() + second.mean()) / 2, spreads)
    expected = ttest_ind(first, -second, equal_var=False).confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low / 2, expected.high / 2), rel=1e-2)


def test_an_item_in_both_columns_counts_as_one() -> None:
    """Pulls that go together widen the interval, and such as cancel out narrow it."""
    up = {str(number): (-1) ** number / 100 for number in range(100)}
    down = {name: -pull for name, pull in up.items()}
    others = {f"other {name}": pull for name, pull in up.items()}
    same, apart, opposite = (delta_variance([up, each]).variance for each in (up, others, down))
    assert same == pytest.approx(2 * apart, rel=0.05) and opposite < apart / 40
    assert (delta_variance([up, up]).items, delta_variance([up, others]).items) == (100, 200)


def test_a_single_item_bounds_nothing() -> None:
    assert (
        satterthwaite_interval(0.0, [delta_variance([{"a": 0.0}]), DeltaVariance(0.01, 100)])
        is None
    )


def test_no_difference_among_few_is_no_proof_of_none() -> None:
    low, high = bounds(0.0, [delta_variance([named([0.0] * 20)])])
    assert high == -low and 0.1 < high < 0.2


def test_beyond_all_there_is_nothing() -> None:
    assert satterthwaite_interval(-0.9, [delta_variance([named([0.0, 0.0])])]) == (-1.0, 1.0)


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), *[st.sampled_from([0.0, 0.25, 1.0])] * 2), min_size=1
    ),
    st.sampled_from([ITEMS, PARTS]),
)
def test_pulls_are_what_moves_the_difference(
    rows: list[tuple[str, float, float]], column: BenchmarkSpec
) -> None:
    marks = [ItemScores(*row) for row in rows]
    told = task_facts(column, marks, total_items=len(marks))
    found = item_influences(column, marks)
    assert sum(found) == pytest.approx(0, abs=1e-12)
    without = task_facts(
        column, [ItemScores(part, 0.0, 0.0) for part, _, _ in rows], total_items=len(marks)
    )
    sizes = {part: sum(row[0] == part for row in rows) for part, _, _ in rows}
    for mark, pull in zip(marks, found, strict=True):
        weight = 1 / (len(sizes) * sizes[mark.part]) if column.is_macro_average else 1 / len(marks)
        assert pull == pytest.approx(weight * (mark.candidate - mark.reference - told["delta"]))
    assert without["delta"] == 0


class World:
    """Six benchmarks as they are: sizes, shares of items that differ, and true losses.

    Both columns of a benchmark ask the same items, and an item that one loses the other mostly
    loses too.
    """

    sizes = {"MMLU": 120, "GSM": 60, "BBH": 54, "TydiQA": 45, "Codex-Eval": 40, "AlpacaFarm": 40}

    def __init__(self, flips: float, loss: float) -> None:
        self.flips, self.loss = flips, loss

    def column(self, draw: np.random.Generator, shared: np.ndarray[Any, Any]) -> list[ItemScores]:
        """Marks whose difference is -1 or 1 where an item flips: mostly as in `shared`."""
        own = draw.random(len(shared))
        told = np.where(draw.random(len(shared)) < 0.9, shared, own)
        lost = self.flips / 2 + self.loss / 2
        delta = np.where(told < lost, -1.0, np.where(told < self.flips, 1.0, 0.0))
        return [
            ItemScores(str(number % 9), float(each < 0), float(each > 0))
            for number, each in enumerate(delta)
        ]

    def run(self, draw: np.random.Generator) -> Iterator[tuple[dict[str, Any], dict[str, float]]]:
        """Each column as a report tells it, and its pulls."""
        for name, count in CARD_COLUMNS.items():
            shared = draw.random(self.sizes[name])
            kind = PARTS if name in ("BBH", "TydiQA") else ITEMS
            for place in range(count):
                marks = self.column(draw, shared)
                weight = 1 / len(marks)  # all parts are of one size
                told = {
                    "name": f"{name} {place}",
                    "title": f"{name} {place}",
                    "benchmark": name,
                    "reference_accuracy": weight * sum(mark.reference for mark in marks),
                    "candidate_accuracy": weight * sum(mark.candidate for mark in marks),
                }
                yield told, named(item_influences(kind, marks))


@pytest.mark.parametrize(("flips", "loss"), [(0.02, 0.0), (0.2, 0.04)])
def test_nineteen_intervals_in_twenty_hold_the_true_difference(flips: float, loss: float) -> None:
    """Where next to nothing differs they are wider than that, and never half as wide again."""
    draw, world, held, runs = np.random.default_rng(2), World(flips, loss), 0, 80
    reach, off = [], []
    for _ in range(runs):
        tasks, found = zip(*world.run(draw), strict=True)
        pulled = {task["name"]: each for task, each in zip(tasks, found, strict=True)}
        told = average_benchmarks(tasks, pulled)
        assert told is not None
        low, high = told["delta_interval"]
        held += low <= -loss <= high
        reach.append((high - low) / 2)
        off.append(told["delta"] + loss)
    assert held / runs >= 0.92
    assert fmean(reach) < 1.5 * 1.96 * sqrt(fmean(each**2 for each in off))


def test_columns_taken_for_independent_would_promise_too_much() -> None:
    draw, world, held, runs = np.random.default_rng(2), World(0.3, 0.05), 0, 80
    for _ in range(runs):
        tasks, found = zip(*world.run(draw), strict=True)
        apart = {
            task["name"]: {f"{task['name']} {name}": pull for name, pull in each.items()}
            for task, each in zip(tasks, found, strict=True)
        }
        told = average_benchmarks(tasks, apart)
        assert told is not None
        low, high = told["delta_interval"]
        held += low <= -0.05 <= high
    assert held / runs < 0.92


def named(found: list[float]) -> dict[str, float]:
    return {str(number): pull for number, pull in enumerate(found)}


def bounds(delta: float, spreads: list[DeltaVariance]) -> tuple[float, float]:
    told = satterthwaite_interval(float(delta), spreads)
    assert told is not None
    return told
