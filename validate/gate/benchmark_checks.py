"""Checks of benchmarks: non-inferiority within a margin, or no significant loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import floor, inf, log2
from typing import Literal

from camelpress.reporting.facts.task_facts import DistinctCounts, TaskFacts
from camelpress.reporting.number_format import format_digits
from camelpress.reporting.verdict import MIN_PIECES, Check, Verdict
from camelpress.validate.gate.pending_check import PendingCheck, finite_interval
from camelpress.validate.gate.sample_size import Interval, SampleSize
from camelpress.validate.settings import TaskGate
from camelpress.validate.statistics.binomial import CONFIDENCE, TAIL_PROBABILITY
from camelpress.validate.statistics.paired_tests import (
    detectable_loss,
    holm_adjust,
    mcnemar_p_value,
    tango_interval,
)

CHECKS_BY_KEY: dict[str, tuple[str, Literal["max", "min"]]] = {  # by the key in the gate
    "margin": ("accuracy_loss", "max"),
    "significance": ("significant_loss", "min"),
}


def pending_task_checks(name: str, limits: TaskGate) -> Iterator[PendingCheck]:
    """Yields the checks of a gate for one task."""
    for key, (check_name, direction) in CHECKS_BY_KEY.items():
        if (threshold := getattr(limits, key)) is not None:
            yield PendingCheck(check_name, name, threshold, direction)


def check_tasks(tasks: Sequence[tuple[TaskFacts, TaskGate]]) -> Iterator[Check]:
    """Yields all checks of the tasks; the significance checks are one family (Holm)."""
    pending = [
        (task, check) for task, limits in tasks for check in pending_task_checks(task.name, limits)
    ]
    losses = [entry for entry in pending if entry[1].name == "accuracy_loss"]
    family = [entry for entry in pending if entry[1].name == "significant_loss"]
    for task, check in losses:
        yield _check_loss(task, check)
    counts = [_distinct_counts(task) for task, _ in family]
    p_values = holm_adjust([mcnemar_p_value(entry.lost, entry.won) for entry in counts])
    for (task, check), p_value in zip(family, p_values, strict=True):
        yield _check_significance(task, check, p_value, len(family))


def _check_loss(task: TaskFacts, check: PendingCheck) -> Check:
    """Checks non-inferiority: the interval of the loss must end within the margin."""
    n, lost, won = task.n, task.lost, task.won
    source = _item_sample_size(task)
    if not n:
        return check.to_error("no items were answered")
    loss = (lost - won) / n
    interval: Interval
    if task.by_count and task.distinct is None:
        interval = tango_interval(n, lost, won, confidence=CONFIDENCE)
    elif task.delta is None:
        return check.to_error("the report has no delta")
    else:  # fractional scores, parts of different sizes, or repeated items
        delta = finite_interval(task.delta_interval, 1.0, -inf, inf)
        loss, interval = 0.0 - task.delta, delta and (-delta[1], -delta[0])
    advice = source.advise_more(loss, interval, check.threshold, None if lost or won else 0.0)
    return check.decide_by_interval(
        loss, interval, source, f"{advice}; {_describe_detectable_loss(task, TAIL_PROBABILITY)}"
    )


def _check_significance(task: TaskFacts, check: PendingCheck, p_value: float, family: int) -> Check:
    """Checks that the candidate has no significant loss."""
    source, counts = _item_sample_size(task), _distinct_counts(task)
    n, lost, won = counts.n, counts.lost, counts.won
    if not n:
        return check.to_error("no items were answered")
    reason = f"{lost} items lost and {won} won, p = {format_digits(p_value, 2)}"
    reason += f" among {family} tasks" if family > 1 else ""
    min_items = max(MIN_PIECES, _min_items(check.threshold, family))
    if source.clusters < min_items:
        reason += f": on {source.description} a loss is not seen, give {min_items} at least"
        return check.to_check(Verdict.INCONCLUSIVE, p_value, None, source, reason)
    verdict = check.verdict(p_value, p_value)
    reason += (
        f": no significant loss, and {_describe_detectable_loss(task, check.threshold)}"
        if verdict is Verdict.PASS
        else f" is below {format_digits(check.threshold)}: a loss that is no accident"
    )
    return check.to_check(verdict, p_value, None, source, reason)


def _min_items(threshold: float, family: int) -> int:
    """Returns the smallest number of items for a significant loss.

    A loss of all items has the p-value 1/2 to the power of their number.
    """
    return 1 + floor(log2(family) - log2(threshold))


def _distinct_counts(task: TaskFacts) -> DistinctCounts | TaskFacts:
    """Returns counts of the items without repetitions, or of all items if none repeats another."""
    return task.distinct or task


def _item_sample_size(task: TaskFacts) -> SampleSize:
    items, distinct = task.n, _distinct_counts(task).n
    return SampleSize(items, distinct, float(distinct), items - distinct, are_items=True)


def _describe_detectable_loss(task: TaskFacts, alpha: float) -> str:
    counts = _distinct_counts(task)
    share = (counts.lost + counts.won) / counts.n
    loss = detectable_loss(counts.n, share, alpha=alpha)
    if loss is None:
        return "on so few no loss would be found four times in five"
    return (
        f"a loss of {format_digits(100 * loss, 2)} % of all items would be found four times in five"
    )
