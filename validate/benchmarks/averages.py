"""The card's Average of both models, and how well their difference in it is known.

It is the mean of the benchmarks' means, not of the columns. Two columns of a benchmark mostly ask
the same items, so an item's pulls on both go together; benchmarks have no items in common.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import sqrt
from statistics import fmean
from typing import Any, NamedTuple

from scipy.special import stdtrit

from camelpress.validate.statistics.binomial import TAIL_PROBABILITY

CARD_COLUMNS = {  # of the card's average, each with so many columns
    "MMLU": 2,
    "GSM": 2,
    "BBH": 2,
    "TydiQA": 2,
    "Codex-Eval": 2,
    "AlpacaFarm": 1,
}
MODEL_ROLES = ("reference", "candidate")
TaskRecord = Mapping[str, Any]  # as a report tells it
Influences = Mapping[str, float]  # of the items of a column, by name: see `columns.pulls`


class DeltaVariance(NamedTuple):
    """The variance of an estimated difference, and the items that it is known from."""

    variance: float
    items: int


def average_benchmarks(
    tasks: Sequence[TaskRecord], pulls: Mapping[str, Influences]
) -> dict[str, Any] | None:
    """The mean of the benchmarks' means, as the card has it.

    A benchmark counts if all its columns are there. The mean of fewer benchmarks than the card's
    is not the card's Average and does not get its name; what is not there is never a 0. None where
    no benchmark is whole.

    Args:
        tasks: of a report.
        pulls: of the items of each, by the name of the task.
    Source:
        the cards of allenai/tulu-7b to tulu-65b: 46.3 of 65B is the mean of MMLU 60.15, GSM 34.5,
        BBH 50.8, TydiQA 32.55, Codex-Eval 37.4 and AlpacaFarm 62.7, and not of its 11 columns.
    """
    whole = {name: found for name in CARD_COLUMNS if (found := _complete_columns(name, tasks))}
    if not whole:
        return None
    means = {
        name: {side: fmean(task[f"{side}_accuracy"] for task in found) for side in MODEL_ROLES}
        for name, found in whole.items()
    }
    spreads = {
        name: delta_variance([pulls[task["name"]] for task in found])
        for name, found in whole.items()
    }
    complete = len(whole) == len(CARD_COLUMNS)
    overall = {side: fmean(mean[side] for mean in means.values()) for side in MODEL_ROLES}
    return {
        "name": "Average"
        if complete
        else f"Mean of {len(whole)} of {len(CARD_COLUMNS)} benchmarks",
        "complete": complete,
        "missing": [name for name in CARD_COLUMNS if name not in whole],
        "benchmarks": {
            name: mean | _delta_facts(mean, [spreads[name]]) for name, mean in means.items()
        },
        **overall,
        **_delta_facts(overall, spreads.values()),
    }


def delta_variance(columns: Sequence[Influences]) -> DeltaVariance:
    """What is known of the difference in a benchmark: the mean of its columns' differences.

    The variance is n/(n-1) times the sum over items of (mean over columns of the item's pull)²,
    as of clusters. The square of one item that all columns lose is added: where no item differs,
    that is no proof that none ever would.

    Args:
        columns: pulls of each, at least one.
    Source:
        Miller 2024, arXiv:2411.00640, section 2.2 (clustered standard errors); one item more, as
        Agresti and Min 2005, doi:10.1002/sim.1781, add to matched pairs half a loss and half a
        win. Ours adds to the variance alone and leaves the difference where it is.
    """
    found: dict[str, float] = {}
    for pulls in columns:
        for item, pull in pulls.items():
            found[item] = found.get(item, 0.0) + pull / len(columns)
    n = len(found)
    squares = sum(pull**2 for pull in found.values()) + 1 / n**2
    return DeltaVariance(squares * n / (n - 1) if n > 1 else float("inf"), n)


def satterthwaite_interval(
    delta: float, spreads: Sequence[DeltaVariance]
) -> tuple[float, float] | None:
    """95 % around a mean of independent differences; None if one is known from a single item.

    Source:
        Satterthwaite 1946, doi:10.2307/3002019, for the degrees of freedom of Student's t.
    """
    if any(each.items < 2 for each in spreads):
        return None
    total = sum(each.variance for each in spreads)
    freedom = total**2 / sum(each.variance**2 / (each.items - 1) for each in spreads)
    reach = float(stdtrit(freedom, 1 - TAIL_PROBABILITY)) * sqrt(total) / len(spreads)
    return max(-1.0, delta - reach), min(1.0, delta + reach)


def _complete_columns(benchmark: str, tasks: Iterable[TaskRecord]) -> list[TaskRecord]:
    """All columns of a benchmark, or none: not one less, and none twice."""
    found = [task for task in tasks if task.get("benchmark") == benchmark]
    titles = {task["title"] for task in found}
    return found if len(titles) == CARD_COLUMNS[benchmark] == len(found) else []


def _delta_facts(means: Mapping[str, float], spreads: Iterable[DeltaVariance]) -> dict[str, Any]:
    delta = means["candidate"] - means["reference"]
    return {"delta": delta, "delta_interval": satterthwaite_interval(delta, [*spreads])}
