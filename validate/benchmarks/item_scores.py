"""Compares the item scores of two models on a task: means, paired difference and power.

A column of the card is the mean over items, or the macro average over its parts (the tasks of BBH,
the languages of TyDiQA). The difference is paired by item.
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
    """The scores of both models on one item, in [0, 1] for most metrics."""

    part: str
    reference: float
    candidate: float
    content: str = ""  # hash of prompt and target, equal for copies; "" if unknown

    @property
    def flip(self) -> str:
        """Returns the outcome for the candidate: same, lost or won."""
        return classify_flip(self.candidate - self.reference)


def classify_flip(delta: float) -> str:
    """Returns the word for a score difference, candidate minus reference."""
    return "same" if delta == 0 else "lost" if delta < 0 else "won"


def task_facts(
    spec: BenchmarkSpec, scores: Sequence[ItemScores], *, total_items: int
) -> dict[str, Any]:
    """Computes the facts of a task for the report.

    Args:
        spec: specification of the task.
        scores: scores of the answered items, at least one.
        total_items: number of items of the task.
    Raises:
        NumericsProblem: There are no scores.
    """
    if not scores:
        raise NumericsProblem(
            f"the task {spec.name} has no scores to compare", next_step="answer at least one item"
        )
    weights = _weights(scores, by_part=spec.is_macro_average)
    flips = Counter(score.flip for score in scores)
    n, first_indices = len(scores), first_occurrences(scores)
    distinct = _count_distinct(scores, first_indices)
    return {
        "name": spec.name,
        "title": spec.title,
        "benchmark": spec.benchmark,
        "metric": spec.metric,
        "by_count": _is_count_interval(scores, weights),
        "distinct": distinct if distinct["n"] < n else None,
        "n": n,
        "of": total_items,
        "parts": len({score.part for score in scores}),
        "lost": flips["lost"],
        "won": flips["won"],
        "reference_accuracy": _mean([score.reference for score in scores], weights),
        "candidate_accuracy": _mean([score.candidate for score in scores], weights),
        "delta": _mean([score.candidate - score.reference for score in scores], weights),
        "delta_interval": _delta_interval(scores, weights, flips),
        "p_value": mcnemar_p_value(distinct["lost"], distinct["won"]),
        "detectable_loss": detectable_loss(
            distinct["n"], _mean_squared_difference(scores), alpha=1 - CONFIDENCE
        ),
        "quirks": dict(spec.quirks),
    }


def first_occurrences(scores: Sequence[ItemScores]) -> list[int]:
    """Returns the index of the first copy of each item; unhashed items have no copies."""
    first_by_content: dict[str, int] = {}
    return [
        first_by_content.setdefault(score.content, index) if score.content else index
        for index, score in enumerate(scores)
    ]


def _count_distinct(scores: Sequence[ItemScores], first_indices: Sequence[int]) -> dict[str, int]:
    """Counts distinct items, and the lost and won ones among them."""
    deltas: dict[int, float] = {}
    for score, first in zip(scores, first_indices, strict=True):
        deltas[first] = deltas.get(first, 0.0) + score.candidate - score.reference
    flips = Counter(map(classify_flip, deltas.values()))
    return {"n": len(deltas), "lost": flips["lost"], "won": flips["won"]}


def item_influences(spec: BenchmarkSpec, scores: Sequence[ItemScores]) -> list[float]:
    """Returns the influence of each item on the column's difference; influences sum to 0.

    The influence of an item is its weight times the excess of its difference over the column's.
    """
    weights = _weights(scores, by_part=spec.is_macro_average)
    deltas = [score.candidate - score.reference for score in scores]
    delta = _mean(deltas, weights)
    return [
        weight * (item_delta - delta) for item_delta, weight in zip(deltas, weights, strict=True)
    ]


def _weights(scores: Sequence[ItemScores], *, by_part: bool) -> list[float]:
    """Returns the item weights, with sum 1."""
    if not by_part:
        return [1 / len(scores)] * len(scores)
    sizes = Counter(score.part for score in scores)
    return [1 / (len(sizes) * sizes[score.part]) for score in scores]


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return sum(value * weight for value, weight in zip(values, weights, strict=True))


def _mean_squared_difference(scores: Sequence[ItemScores]) -> float:
    """Returns the mean squared difference; for binary scores, the share of flips."""
    return fmean((score.candidate - score.reference) ** 2 for score in scores)


def _is_count_interval(scores: Sequence[ItemScores], weights: Sequence[float]) -> bool:
    """Returns True if the counts of lost and won items determine the interval.

    All scores are binary, all weights are equal, and there are no copies.
    """
    is_binary = all(
        value in (0, 1) for score in scores for value in (score.reference, score.candidate)
    )
    is_uniform = max(weights) - min(weights) < 1e-12
    return is_binary and is_uniform and len({*first_occurrences(scores)}) == len(scores)


def _delta_interval(
    scores: Sequence[ItemScores], weights: Sequence[float], flips: Mapping[str, int]
) -> tuple[float, float] | None:
    """Returns the interval of the difference, candidate minus reference.

    Uses Tango's interval if counts determine it, else a bootstrap over distinct items, at least
    as wide as Tango's interval for equally many items without a flip.
    """
    n, first_indices = len(scores), torch.tensor(first_occurrences(scores))
    if _is_count_interval(scores, weights):
        low, high = tango_interval(n, flips["lost"], flips["won"], confidence=CONFIDENCE)
        return -high, -low
    weighted_deltas = [
        n * weight * (score.candidate - score.reference)
        for score, weight in zip(scores, weights, strict=True)
    ]
    estimate = bootstrap_mean(torch.tensor(weighted_deltas, dtype=torch.float64), first_indices)
    if estimate.interval is None:
        return None
    n_effective = max(1, int(effective_clusters(first_indices)))
    max_score = max(
        1.0,
        *(abs(score.candidate) for score in scores),
        *(abs(score.reference) for score in scores),
    )
    half_width = max_score * tango_interval(n_effective, 0, 0, confidence=CONFIDENCE)[1]
    low, high = estimate.mean - half_width, estimate.mean + half_width
    return max(-max_score, min(low, estimate.low)), min(max_score, max(high, estimate.high))
