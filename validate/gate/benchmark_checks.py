"""Checks of benchmarks: a loss that is surely small, or none that is no accident."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import floor, inf, log2
from typing import Any, Literal

from camelpress.reporting.stage_report import MIN_PIECES, Check, Verdict
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

Task = Mapping[str, Any]  # as a report has it
CHECKS_BY_KEY: dict[str, tuple[str, Literal["max", "min"]]] = {  # by the name in the gate
    "margin": ("accuracy_loss", "max"),
    "significance": ("significant_loss", "min"),
}


def pending_task_checks(name: str, bound: TaskGate) -> Iterator[PendingCheck]:
    """The checks that a gate has for a task."""
    for key, (check, direction) in CHECKS_BY_KEY.items():
        if (threshold := getattr(bound, key)) is not None:
            yield PendingCheck(check, name, threshold, direction)


def check_tasks(tasks: Sequence[tuple[Task, TaskGate]]) -> Iterator[Check]:
    """All checks of some tasks; those of significance are one family (Holm)."""
    pending = [
        (task, question)
        for task, bound in tasks
        for question in pending_task_checks(task["name"], bound)
    ]
    losses = [each for each in pending if each[1].name == "accuracy_loss"]
    family = [each for each in pending if each[1].name == "significant_loss"]
    for task, question in losses:
        yield _check_loss(task, question)
    counts = [_distinct_counts(task) for task, _ in family]
    p_values = holm_adjust([mcnemar_p_value(each["lost"], each["won"]) for each in counts])
    for (task, question), p_value in zip(family, p_values, strict=True):
        yield _check_significance(task, question, p_value, len(family))


def _check_loss(task: Task, question: PendingCheck) -> Check:
    """Non-inferiority: the largest loss that the counts do not contradict is within the margin."""
    n, lost, won = task["n"], task["lost"], task["won"]
    source = _item_sample_size(task)
    if not n:
        return question.to_error("no items were answered")
    loss = (lost - won) / n
    interval: Interval
    if task.get("by_count", True) and not task.get("distinct"):
        interval = tango_interval(n, lost, won, confidence=CONFIDENCE)
    elif task.get("delta") is None:
        return question.to_error("the report has no delta")
    else:  # marks between right and wrong, parts of other sizes, or items that repeat
        delta = finite_interval(task.get("delta_interval"), 1.0, -inf, inf)
        loss, interval = 0.0 - task["delta"], delta and (-delta[1], -delta[0])
    advice = source.advise_more(loss, interval, question.threshold, None if lost or won else 0.0)
    return question.by_interval(
        loss, interval, source, f"{advice}; {_describe_detectable_loss(task, TAIL_PROBABILITY)}"
    )


def _check_significance(task: Task, question: PendingCheck, p_value: float, family: int) -> Check:
    """A veto: whether the candidate loses more items than it wins, and not by accident."""
    source, counts = _item_sample_size(task), _distinct_counts(task)
    n, lost, won = counts["n"], counts["lost"], counts["won"]
    if not n:
        return question.to_error("no items were answered")
    why = f"{lost} items lost and {won} won, p = {p_value:.2g}"
    why += f" among {family} tasks" if family > 1 else ""
    least = max(MIN_PIECES, _min_items(question.threshold, family))
    if source.clusters < least:
        why += f": on {source.description} a loss is not seen, give {least} at least"
        return question.to_check(Verdict.INCONCLUSIVE, p_value, None, source, why)
    verdict = question.verdict(p_value, p_value)
    why += (
        f": no significant loss, and {_describe_detectable_loss(task, question.threshold)}"
        if verdict is Verdict.PASS
        else f" is below {question.threshold:g}: a loss that is no accident"
    )
    return question.to_check(verdict, p_value, None, source, why)


def _min_items(threshold: float, family: int) -> int:
    """Items of which a loss of all, with a p-value of 1/2 to the power of them, is significant."""
    return 1 + floor(log2(family) - log2(threshold))


def _distinct_counts(task: Task) -> Mapping[str, int]:
    """Counts of the items that repeat no other one; of all items where none repeats another."""
    return task.get("distinct") or {key: task[key] for key in ("n", "lost", "won")}


def _item_sample_size(task: Task) -> SampleSize:
    items, distinct = task["n"], _distinct_counts(task)["n"]
    return SampleSize(items, distinct, float(distinct), items - distinct, are_items=True)


def _describe_detectable_loss(task: Task, alpha: float) -> str:
    counts = _distinct_counts(task)
    share = (counts["lost"] + counts["won"]) / counts["n"]
    loss = detectable_loss(counts["n"], share, alpha=alpha)
    if loss is None:
        return "on so few no loss would be found four times in five"
    return f"a loss of {100 * loss:.2g} % of all items would be found four times in five"
