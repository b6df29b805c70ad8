"""Paired figures of a task, and which items fit into a time."""

from __future__ import annotations

import random
from collections import Counter
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from camelpress.core.errors import NumericsProblem, RecipeProblem
from camelpress.validate.benchmarks import time_budget
from camelpress.validate.benchmarks.item_scores import ItemScores, task_facts
from camelpress.validate.benchmarks.task_catalogue import BenchmarkSpec
from camelpress.validate.statistics.paired_tests import detectable_loss, tango_interval

ITEMS = BenchmarkSpec(name="task", metric="acc")
PARTS = BenchmarkSpec(name="task", metric="f1", is_macro_average=True)


def marks(*pairs: tuple[float, float], part: str = "") -> list[ItemScores]:
    return [ItemScores(part, *pair) for pair in pairs]


BOTH, LOST, WON, NEITHER = (1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)


def test_right_or_wrong_items_are_counted() -> None:
    told = task_facts(
        ITEMS, marks(*[BOTH] * 60, *[LOST] * 9, *[WON] * 4, *[NEITHER] * 27), total_items=200
    )
    assert (told["n"], told["of"], told["lost"], told["won"]) == (100, 200, 9, 4)
    assert told["reference_accuracy"] == pytest.approx(0.69)
    assert told["candidate_accuracy"] == pytest.approx(0.64)
    assert told["delta"] == pytest.approx(-0.05) and told["by_count"]
    low, high = tango_interval(100, 9, 4, confidence=0.95)
    assert told["delta_interval"] == (-high, -low)
    assert told["detectable_loss"] == detectable_loss(100, 0.13, alpha=0.05 + 1e-17)
    assert told["p_value"] == pytest.approx(0.13342, abs=1e-5)  # binomial, 9 of 13 or more


@given(
    st.dictionaries(
        st.sampled_from("abc"),
        st.lists(st.tuples(*[st.sampled_from([0.0, 0.25, 1.0])] * 2), min_size=1, max_size=6),
        min_size=1,
    )
)
def test_parts_count_alike_whatever_their_size(parts: dict[str, list[tuple[float, float]]]) -> None:
    found = [each for part, pairs in parts.items() for each in marks(*pairs, part=part)]
    told = task_facts(PARTS, found, total_items=len(found))
    for side, place in (("reference", 0), ("candidate", 1)):
        expected = fmean(fmean(pair[place] for pair in pairs) for pairs in parts.values())
        assert told[f"{side}_accuracy"] == pytest.approx(expected)
    assert told["delta"] == pytest.approx(told["candidate_accuracy"] - told["reference_accuracy"])
    if told["delta_interval"]:
        low, high = told["delta_interval"]
        assert low - 1e-9 <= told["delta"] <= high + 1e-9


def test_the_interval_of_marks_in_between_holds_the_truth_as_often_as_it_says() -> None:
    draw, held = np.random.default_rng(0), 0
    for _ in range(120):
        first = draw.random(60)
        second = np.clip(first - 0.02 + draw.normal(0, 0.1, 60), None, None)
        told = task_facts(
            ITEMS,
            [ItemScores("", *pair) for pair in zip(first, second, strict=True)],
            total_items=60,
        )
        low, high = told["delta_interval"]
        held += low <= -0.02 <= high
    assert 107 <= held <= 120  # of 114 expected: beyond 2.9 standard errors


def copied(count: int, reference: float, candidate: float, content: str) -> list[ItemScores]:
    return [ItemScores("", reference, candidate, content)] * count


def test_items_that_repeat_count_once_in_tests_and_intervals() -> None:
    """400 rows, of which 390 are one lost item: the score is that of the rows, the evidence not."""
    others = [ItemScores("", 1.0, 1.0, f"other {number}") for number in range(10)]
    told = task_facts(ITEMS, copied(390, 1.0, 0.0, "lost") + others, total_items=400)
    assert (told["n"], told["lost"], told["delta"]) == (400, 390, pytest.approx(-0.975))
    assert told["distinct"] == {"n": 11, "lost": 1, "won": 0}
    assert told["p_value"] == 0.5 and not told["by_count"]
    low, high = told["delta_interval"]
    assert low == -1 and high >= -0.3
    alone = task_facts(ITEMS, others, total_items=10)
    assert alone["distinct"] is None and alone["by_count"]


def test_copies_of_one_item_have_no_interval() -> None:
    assert task_facts(ITEMS, copied(300, 1.0, 1.0, "x"), total_items=300)["delta_interval"] is None


@pytest.mark.parametrize("column", [ITEMS, PARTS])
def test_equal_marks_in_between_are_no_proof_of_no_loss(column: BenchmarkSpec) -> None:
    told = task_facts(column, marks(*[(0.5, 0.5)] * 30), total_items=30)
    zero = tango_interval(30, 0, 0, confidence=0.95)[1]
    assert told["delta_interval"][0] <= -zero and zero <= told["delta_interval"][1]


def test_no_marks_are_no_zero() -> None:
    with pytest.raises(NumericsProblem, match="no scores to compare"):
        task_facts(ITEMS, [], total_items=10)


@pytest.mark.parametrize(
    ("text", "seconds"), [("10m", 600), ("90s", 90), ("1.5h", 5400), (" 2m ", 120)]
)
def test_a_budget_is_a_time(text: str, seconds: float) -> None:
    assert time_budget.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["10", "m", "0m", "-1m", "1d", "ten minutes", ""])
def test_anything_else_is_none(text: str) -> None:
    with pytest.raises(RecipeProblem, match="is not a time"):
        time_budget.parse_duration(text)


class Clock:
    """A model that takes so many seconds for an item, and so many more for a round."""

    def __init__(self, each: float, once: float, *, tells: bool, known: int) -> None:
        self.each, self.once, self.tells, self.known = each, once, tells, known
        self.now = 0.0
        self.rounds: list[int] = []

    def answer(self, items: int) -> time_budget.RoundCost:
        new = max(0, items - self.known)
        self.now += (self.once + self.each * new) if new else 0.0
        self.known += new
        self.rounds.append(items)
        return time_budget.RoundCost(new, self.once if self.tells and new else 0.0)


# fmt: off
@pytest.mark.parametrize(
    ("each", "once", "tells", "share", "known", "rounds"),
    [
        (1.0,  0.0,  True,  100.0, 0,   [16, 100]),       # 84 in the 84 s that are left
        (0.1,  0.0,  True,  100.0, 0,   [16, 144, 500]),  # up to eight times as many more, of 500
        (0.5,  20.0, True,  100.0, 0,   [16, 120]),       # 28 s, then 52 s and 20 s again
        (0.5,  20.0, False, 100.0, 0,   [16, 57, 88]),    # what a round takes is not known: 104 s
        (60.0, 0.0,  True,  1.0,   0,   [16]),            # however long they take
        (1.0,  0.0,  True,  100.0, 200, [16, 144, 272, 300]),  # 200 are known, which tells no speed
    ],
)
# fmt: on
def test_as_many_items_fit_as_the_time_is_enough_for(
    each: float, once: float, tells: bool, share: float, known: int, rounds: list[int]
) -> None:
    model = Clock(each, once, tells=tells, known=known)
    found = time_budget.answer_within_budget(
        500, share, model.answer, first=16, clock=lambda: model.now
    )
    assert (found, model.rounds) == (rounds[-1], rounds)


@given(
    st.floats(1e-4, 5), st.floats(0, 30), st.floats(1, 500), st.integers(1, 600), st.integers(1, 30)
)
def test_more_is_asked_only_if_it_fits(
    each: float, once: float, share: float, total: int, unit: int
) -> None:
    model = Clock(each, once, tells=True, known=0)
    found = time_budget.answer_within_budget(
        total, share, model.answer, first=16, unit=unit, clock=lambda: model.now
    )
    assert 1 <= found <= total and (found % unit == 0 or found == total)
    first = once + each * model.rounds[0]
    assert model.now <= max(first, share) + 1e-6
    assert model.rounds == sorted({*model.rounds})


@given(st.integers(1, 40), st.integers(0, 20), st.booleans())
def test_a_larger_subset_holds_the_smaller(count: int, more: int, by_part: bool) -> None:
    parts = [str(place % 3) for place in range(60)]
    small = time_budget.sample_items(parts, count, by_part=by_part)
    large = time_budget.sample_items(parts, count + more, by_part=by_part)
    assert {*small} <= {*large} and small == sorted({*small})
    assert len(small) == (max(3, count - count % 3) if by_part else count)
    if by_part:
        assert len({*Counter(parts[place] for place in small).values()}) == 1


def test_a_subset_is_the_same_in_every_run() -> None:
    parts = [""] * 200
    random.seed(7)
    first = time_budget.sample_items(parts, 5, by_part=False)
    random.seed(8)
    assert time_budget.sample_items(parts, 5, by_part=False) == first == sorted(first)
    assert time_budget.sample_items(parts, 999, by_part=False) == [*range(200)]
