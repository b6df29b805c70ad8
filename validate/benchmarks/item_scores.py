"""Two models' marks on the items of a task: both scores, the difference, and what would be seen.

A column of the card is the mean over items, or the mean of the means of its parts (the tasks of
BBH, the languages of TyDiQA). Its difference is paired: item by item.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch

from camelpress.core.errors import NumericsProblem
from camelpress.validate.benchmarks.task_catalogue import BenchmarkSpec
from camelpress.validate.statistics.binomial import CONFIDENCE
from camelpress.validate.statistics.clustered import bootstrap_mean, effective_clusters
from camelpress.validate.statistics.paired_tests import (
    detectable_loss,
    mcnemar_p_value,
    tango_interval,
)


@dataclass(frozen=True)
class ItemScores:
    """What both models got for one item, each in [0, 1] for most metrics."""

    part: str
    reference: float
    candidate: float
    content: str = ""  # a hash of prompt and target, by which copies are known

    @property
    def flip(self) -> str:
        """The model that did better."""
        return classify_flip(self.candidate - self.reference)


def classify_flip(delta: float) -> str:
    """The word for a difference, candidate minus reference."""
    return "same" if delta == 0 else "lost" if delta < 0 else "won"


def task_facts(column: BenchmarkSpec, marks: Sequence[ItemScores], *, of: int) -> dict[str, Any]:
    """A task as a report tells it.

    Args:
        column: what the task says of itself.
        marks: of the items that were asked, at least one.
        of: items that the task has.
    Raises:
        NumericsProblem: there are no marks.
    """
    if not marks:
        raise NumericsProblem(
            f"the task {column.name} has no marks to compare", next_step="ask at least one item"
        )
    weights = _weights(marks, by_part=column.is_macro_average)
    flips = Counter(each.flip for each in marks)
    n, item = len(marks), first_occurrences(marks)
    distinct = _count_distinct(marks, item)
    return {
        "name": column.name,
        "title": column.title,
        "benchmark": column.benchmark,
        "metric": column.metric,
        "by_count": _is_count_interval(marks, weights),
        "distinct": distinct if distinct["n"] < n else None,
        "n": n,
        "of": of,
        "parts": len({each.part for each in marks}),
        "lost": flips["lost"],
        "won": flips["won"],
        "reference_accuracy": _mean([each.reference for each in marks], weights),
        "candidate_accuracy": _mean([each.candidate for each in marks], weights),
        "delta": _mean([each.candidate - each.reference for each in marks], weights),
        "delta_interval": _delta_interval(marks, weights, flips),
        "p_value": mcnemar_p_value(distinct["lost"], distinct["won"]),
        "detectable_loss": detectable_loss(
            distinct["n"], _mean_squared_difference(marks), alpha=1 - CONFIDENCE
        ),
        "quirks": dict(column.quirks),
    }


def first_occurrences(marks: Sequence[ItemScores]) -> list[int]:
    """The first item with the prompt and the target of each; itself, where these are not known."""
    first: dict[str, int] = {}
    return [
        first.setdefault(each.content, place) if each.content else place
        for place, each in enumerate(marks)
    ]


def _count_distinct(marks: Sequence[ItemScores], item: Sequence[int]) -> dict[str, int]:
    """How many items there are without their copies, and how many of them are lost and won."""
    deltas: dict[int, float] = {}
    for each, first in zip(marks, item, strict=True):
        deltas[first] = deltas.get(first, 0.0) + each.candidate - each.reference
    flips = Counter(map(classify_flip, deltas.values()))
    return {"n": len(deltas), "lost": flips["lost"], "won": flips["won"]}


def item_influences(column: BenchmarkSpec, marks: Sequence[ItemScores]) -> list[float]:
    """How far each item pulls the column's difference away from what it is; in all, nowhere.

    An item's pull is its weight times what its own difference is more than the column's.
    """
    weights = _weights(marks, by_part=column.is_macro_average)
    found = [each.candidate - each.reference for each in marks]
    delta = _mean(found, weights)
    return [weight * (each - delta) for each, weight in zip(found, weights, strict=True)]


def _weights(marks: Sequence[ItemScores], *, by_part: bool) -> list[float]:
    """What each item counts; all together 1."""
    if not by_part:
        return [1 / len(marks)] * len(marks)
    sizes = Counter(each.part for each in marks)
    return [1 / (len(sizes) * sizes[each.part]) for each in marks]


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return sum(value * weight for value, weight in zip(values, weights, strict=True))


def _mean_squared_difference(marks: Sequence[ItemScores]) -> float:
    """Mean squared difference; of items that are right or wrong the share that differs."""
    return fmean((each.candidate - each.reference) ** 2 for each in marks)


def _is_count_interval(marks: Sequence[ItemScores], weights: Sequence[float]) -> bool:
    """Whether the interval of the difference follows from how many items are lost and won.

    They are right or wrong, count alike, and none is another one's copy.
    """
    right_or_wrong = all(
        mark in (0, 1) for each in marks for mark in (each.reference, each.candidate)
    )
    alike = max(weights) - min(weights) < 1e-12
    return right_or_wrong and alike and len({*first_occurrences(marks)}) == len(marks)


def _delta_interval(
    marks: Sequence[ItemScores], weights: Sequence[float], flips: Mapping[str, int]
) -> tuple[float, float] | None:
    """Of candidate minus reference: Tango's where counts make it, else one over distinct items.

    The latter is never narrower than Tango's of as many items among which none differs.
    """
    n, item = len(marks), torch.tensor(first_occurrences(marks))
    if _is_count_interval(marks, weights):
        low, high = tango_interval(n, flips["lost"], flips["won"], confidence=CONFIDENCE)
        return -high, -low
    each = [
        n * weight * (mark.candidate - mark.reference)
        for mark, weight in zip(marks, weights, strict=True)
    ]
    estimate = bootstrap_mean(torch.tensor(each, dtype=torch.float64), item)
    if estimate.interval is None:
        return None
    known = max(1, int(effective_clusters(item)))
    size = max(1.0, *(abs(mark.candidate) for mark in marks), *(abs(m.reference) for m in marks))
    reach = size * tango_interval(known, 0, 0, confidence=CONFIDENCE)[1]
    low, high = estimate.mean - reach, estimate.mean + reach
    return max(-size, min(low, estimate.low)), min(size, max(high, estimate.high))
