"""Checks of benchmarks: a loss that is surely small, or none that is no accident."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import floor, inf, log2
from typing import Any, Literal

from camelpress.reporting.stage_report import LEAST_PIECES, Check, Verdict
from camelpress.validate.gate.pending_check import PendingCheck, bounded
from camelpress.validate.gate.sample_size import Evidence, Interval
from camelpress.validate.settings import TaskBound
from camelpress.validate.statistics.binomial import CONFIDENCE, TAIL
from camelpress.validate.statistics.paired_tests import (
    detectable_loss,
    holm,
    loss_interval,
    loss_p_value,
)

Task = Mapping[str, Any]  # as a report has it
KINDS: dict[str, tuple[str, Literal["max", "min"]]] = {  # by the name in the gate
    "margin": ("accuracy_loss", "max"),
    "significance": ("significant_loss", "min"),
}


def questions(name: str, bound: TaskBound) -> Iterator[PendingCheck]:
    """The checks that a gate has for a task."""
    for key, (check, direction) in KINDS.items():
        if (threshold := getattr(bound, key)) is not None:
            yield PendingCheck(check, name, threshold, direction)


def checks(tasks: Sequence[tuple[Task, TaskBound]]) -> Iterator[Check]:
    """All checks of some tasks; those of significance are one family (Holm)."""
    pending = [
        (task, question) for task, bound in tasks for question in questions(task["name"], bound)
    ]
    losses = [each for each in pending if each[1].name == "accuracy_loss"]
    family = [each for each in pending if each[1].name == "significant_loss"]
    for task, question in losses:
        yield _loss(task, question)
    counts = [_distinct(task) for task, _ in family]
    p_values = holm([loss_p_value(each["lost"], each["won"]) for each in counts])
    for (task, question), p_value in zip(family, p_values, strict=True):
        yield _significance(task, question, p_value, len(family))


def _loss(task: Task, question: PendingCheck) -> Check:
    """Non-inferiority: the largest loss that the counts do not contradict is within the margin."""
    n, lost, won = task["n"], task["lost"], task["won"]
    source = _evidence(task)
    if not n:
        return question.error("no items were answered")
    loss = (lost - won) / n
    interval: Interval
    if task.get("by_count", True) and not task.get("distinct"):
        interval = loss_interval(n, lost, won, confidence=CONFIDENCE)
    elif task.get("delta") is None:
        return question.error("the report has no delta")
    else:  # marks between right and wrong, parts of other sizes, or items that repeat
        delta = bounded(task.get("delta_interval"), 1.0, -inf, inf)
        loss, interval = 0.0 - task["delta"], delta and (-delta[1], -delta[0])
    advice = source.advice(loss, interval, question.threshold, None if lost or won else 0.0)
    return question.decided(loss, interval, source, f"{advice}; {_detectable(task, TAIL)}")


def _significance(task: Task, question: PendingCheck, p_value: float, family: int) -> Check:
    """A veto: whether the candidate loses more items than it wins, and not by accident."""
    source, counts = _evidence(task), _distinct(task)
    n, lost, won = counts["n"], counts["lost"], counts["won"]
    if not n:
        return question.error("no items were answered")
    why = f"{lost} items lost and {won} won, p = {p_value:.2g}"
    why += f" among {family} tasks" if family > 1 else ""
    least = max(LEAST_PIECES, _fewest(question.threshold, family))
    if source.pieces < least:
        why += f": on {source.words} a loss is not seen, give {least} at least"
        return question.answer(Verdict.INCONCLUSIVE, p_value, None, source, why)
    verdict = question.verdict(p_value, p_value)
    why += (
        f": no significant loss, and {_detectable(task, question.threshold)}"
        if verdict is Verdict.PASS
        else f" is below {question.threshold:g}: a loss that is no accident"
    )
    return question.answer(verdict, p_value, None, source, why)


def _fewest(threshold: float, family: int) -> int:
    """Items of which a loss of all, with a p-value of 1/2 to the power of them, is significant."""
    return 1 + floor(log2(family) - log2(threshold))


def _distinct(task: Task) -> Mapping[str, int]:
    """Counts of the items that repeat no other one; of all items where none repeats another."""
    return task.get("distinct") or {key: task[key] for key in ("n", "lost", "won")}


def _evidence(task: Task) -> Evidence:
    items, distinct = task["n"], _distinct(task)["n"]
    return Evidence(items, distinct, float(distinct), items - distinct, items=True)


def _detectable(task: Task, alpha: float) -> str:
    counts = _distinct(task)
    share = (counts["lost"] + counts["won"]) / counts["n"]
    loss = detectable_loss(counts["n"], share, alpha=alpha)
    if loss is None:
        return "on so few no loss would be found four times in five"
    return f"a loss of {100 * loss:.2g} % of all items would be found four times in five"
