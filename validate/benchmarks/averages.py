"""Computes the model card's Average for both models, with an interval for the difference.

The Average is the mean of benchmark means, not of columns. Two columns of a benchmark mostly share
their items, so the influences of an item on both are combined; benchmarks share no items.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import sqrt
from statistics import fmean
from typing import Any, NamedTuple

from scipy.special import stdtrit

from camelpress.validate.statistics.binomial import TAIL_PROBABILITY

CARD_COLUMNS = {  # benchmarks of the card's Average: number of columns
    "MMLU": 2,
    "GSM": 2,
    "BBH": 2,
    "TydiQA": 2,
    "Codex-Eval": 2,
    "AlpacaFarm": 1,
}
MODEL_ROLES = ("reference", "candidate")
TaskRecord = Mapping[str, Any]  # a task in the facts of a report
Influences = Mapping[str, float]  # by item name, see `item_scores.item_influences`


class DeltaVariance(NamedTuple):
    """The variance of an estimated difference, and its number of items."""

    variance: float
    items: int


def average_benchmarks(
    tasks: Sequence[TaskRecord], influences: Mapping[str, Influences]
) -> dict[str, Any] | None:
    """Computes the mean of benchmark means, as on the model card.

    A benchmark counts only with all its columns. The mean of fewer benchmarks is not named
    Average, and a missing benchmark never counts as 0.

    Args:
        tasks: tasks of a report.
        influences: item influences by task name.
    Returns:
        Facts for the report; None without a complete benchmark.
    Source:
        Model cards of allenai/tulu-7b to tulu-65b: 46.3 of 65B is the mean of MMLU 60.15, GSM
        34.5, BBH 50.8, TydiQA 32.55, Codex-Eval 37.4 and AlpacaFarm 62.7, not of its 11 columns.
    """
    complete_benchmarks = {
        name: columns for name in CARD_COLUMNS if (columns := _complete_columns(name, tasks))
    }
    if not complete_benchmarks:
        return None
    means = {
        name: {role: fmean(task[f"{role}_accuracy"] for task in columns) for role in MODEL_ROLES}
        for name, columns in complete_benchmarks.items()
    }
    variances = {
        name: delta_variance([influences[task["name"]] for task in columns])
        for name, columns in complete_benchmarks.items()
    }
    is_complete = len(complete_benchmarks) == len(CARD_COLUMNS)
    overall = {role: fmean(mean[role] for mean in means.values()) for role in MODEL_ROLES}
    return {
        "name": "Average"
        if is_complete
        else f"Mean of {len(complete_benchmarks)} of {len(CARD_COLUMNS)} benchmarks",
        "complete": is_complete,
        "missing": [name for name in CARD_COLUMNS if name not in complete_benchmarks],
        "benchmarks": {
            name: mean | _delta_facts(mean, [variances[name]]) for name, mean in means.items()
        },
        **overall,
        **_delta_facts(overall, variances.values()),
    }


def delta_variance(columns: Sequence[Influences]) -> DeltaVariance:
    """Estimates the variance of a benchmark's difference, the mean of its column differences.

    The variance is n/(n-1) times the sum over items of (mean influence over the columns)², as for
    clusters. It includes one extra item lost in all columns, because zero observed differences do
    not prove a zero difference.

    Args:
        columns: item influences of each column, at least one column.
    Source:
        Miller 2024, arXiv:2411.00640, section 2.2 (clustered standard errors). The extra item
        follows Agresti and Min 2005, doi:10.1002/sim.1781, who add half a loss and half a win to
        matched pairs. Ours changes the variance only, not the difference.
    """
    mean_influences: dict[str, float] = {}
    for influences in columns:
        for item, influence in influences.items():
            mean_influences[item] = mean_influences.get(item, 0.0) + influence / len(columns)
    n = len(mean_influences)
    squares = sum(influence**2 for influence in mean_influences.values()) + 1 / n**2
    return DeltaVariance(squares * n / (n - 1) if n > 1 else float("inf"), n)


def satterthwaite_interval(
    delta: float, variances: Sequence[DeltaVariance]
) -> tuple[float, float] | None:
    """Returns the 95 % interval of a mean of independent differences, None below two items.

    Source:
        Satterthwaite 1946, doi:10.2307/3002019, for the degrees of freedom of Student's t.
    """
    if any(term.items < 2 for term in variances):
        return None
    total = sum(term.variance for term in variances)
    degrees_of_freedom = total**2 / sum(term.variance**2 / (term.items - 1) for term in variances)
    half_width = (
        float(stdtrit(degrees_of_freedom, 1 - TAIL_PROBABILITY)) * sqrt(total) / len(variances)
    )
    return max(-1.0, delta - half_width), min(1.0, delta + half_width)


def _complete_columns(benchmark: str, tasks: Iterable[TaskRecord]) -> list[TaskRecord]:
    """Returns the tasks of a benchmark if each column occurs exactly once, else an empty list."""
    columns = [task for task in tasks if task.get("benchmark") == benchmark]
    titles = {task["title"] for task in columns}
    return columns if len(titles) == CARD_COLUMNS[benchmark] == len(columns) else []


def _delta_facts(means: Mapping[str, float], variances: Iterable[DeltaVariance]) -> dict[str, Any]:
    delta = means["candidate"] - means["reference"]
    return {"delta": delta, "delta_interval": satterthwaite_interval(delta, [*variances])}
