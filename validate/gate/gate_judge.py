"""Thresholds to verdicts: a figure passes only if its whole interval does.

Nothing but a report's facts is judged, so a report can be judged again without its models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from math import inf, isfinite
from pathlib import Path
from typing import Any, TypeVar

from camelpress.core.errors import RecipeProblem
from camelpress.core.files.yaml_files import read_yaml
from camelpress.reporting.limit_range import AGREEMENT
from camelpress.reporting.metrics import COUNT, MEASURES, find
from camelpress.reporting.stage_report import Check
from camelpress.validate.gate import benchmark_checks, sample_size
from camelpress.validate.gate.pending_check import PendingCheck, bounded, is_collapsed
from camelpress.validate.settings import AtLeast, AtMost, Bounds, Gate, TaskBound

AGAIN = "validate again, for this report is of an earlier version, or was changed"
ROUNDING = 1e-4  # nats that a divergence may lie below 0
Limits = TypeVar("Limits", Bounds, TaskBound)


def read(path: Path) -> Gate:
    """A gate from YAML; a check that is not named keeps its default.

    Raises:
        RecipeProblem: missing, not YAML, an unknown check or an impossible bound.
    """
    return Gate.parse(read_yaml(path), source=str(path))


def judge(facts: Mapping[str, Any], gate: Gate) -> tuple[Check, ...]:
    """Hold each figure that the gate asks for against its bound.

    PASS: the whole 95 % interval is within the bound. FAIL: the whole interval is beyond it.
    INCONCLUSIVE: the interval holds the threshold, or comes from fewer than
    `report.LEAST_PIECES` pieces of text; the reason tells how many would decide. ERROR: the
    report lacks the figure, it is no finite number, or no tokens were scored.

    Args:
        facts: of a validation report.
        gate: what is asked of all texts, of the beginnings of windows, of each text and task.
    Raises:
        RecipeProblem: the gate leaves out every check.
    """
    early = facts.get("early") or {}
    checks = [
        *_part(facts, gate, None),
        *_part(early.get("first"), gate.early, f"first {early.get('context', '?')} tokens"),
        *_texts(facts, gate),
        *_tasks(facts, gate),
    ]
    if not checks:
        raise RecipeProblem("the gate holds no check", next_step="name at least one threshold")
    return tuple(checks)


def _questions(bounds: Bounds, part: str | None) -> Iterator[PendingCheck]:
    for name in MEASURES:
        match getattr(bounds, name):
            case AtMost(max=threshold):
                yield PendingCheck(name, part, threshold, "max")
            case AtLeast(min=threshold):
                yield PendingCheck(name, part, threshold, "min")


def _part(facts: Any, bounds: Bounds, part: str | None) -> Iterator[Check]:
    """Checks one part of the facts: each figure with its interval and what it comes from."""
    source = sample_size.of_part(facts or {})
    for question in _questions(bounds, part):
        measure = MEASURES[question.name]
        value, ends = find(facts, measure.fact), find(facts, measure.interval)
        if not source.n:
            yield question.error("no tokens were scored")
        elif value is None or not isfinite(value):
            fact = measure.fact.replace("/", ".")
            why = f"the report has no {fact}" if value is None else f"{fact} is not finite"
            yield question.error(why, source)
        elif not -ROUNDING <= value <= (most := 1.0 if measure.limits is AGREEMENT else inf):
            yield question.error(f"{measure.fact.replace('/', '.')} cannot be {value:.5g}", source)
        elif measure.sampled:
            interval = bounded(ends, value, 0.0, most)
            advice = source.advice(value, interval, question.threshold, measure.lossless)
            advice = AGAIN if interval is None and is_collapsed(ends, value) else advice
            yield question.decided(float(value), interval, source, advice)
        else:
            number = f"{value:,.0f}" if measure.unit == COUNT else f"{value:.5g}"
            yield question.exact(float(value), number, source)


def _texts(facts: Mapping[str, Any], gate: Gate) -> Iterator[Check]:
    texts = {text["name"]: text for text in facts.get("texts") or []}
    asked, idle = _fitting(gate.texts, list(texts))
    for name, bounds in asked.items():
        yield from _part(texts[name], bounds, name)
    for pattern in idle:
        for question in _questions(gate.texts[pattern], pattern):
            yield question.error("the report has no text of this name")


def _tasks(facts: Mapping[str, Any], gate: Gate) -> Iterator[Check]:
    tasks = {task["name"]: task for task in facts.get("tasks") or []}
    asked, idle = _fitting(gate.tasks, list(tasks))
    yield from benchmark_checks.checks([(tasks[name], bound) for name, bound in asked.items()])
    for pattern in idle:
        for question in benchmark_checks.questions(pattern, gate.tasks[pattern]):
            yield question.error("the report has no task of this name")


def _fitting(
    patterns: Mapping[str, Limits], names: Sequence[str]
) -> tuple[dict[str, Limits], list[str]]:
    """What is asked of each name, and the patterns that fit none.

    Of two patterns that fit one name and speak of the same figure, the later one wins.
    """
    asked: dict[str, Limits] = {}
    for name in names:
        for pattern, limits in patterns.items():
            if fnmatchcase(name, pattern):
                said = {key: getattr(limits, key) for key in limits.model_fields_set}
                asked[name] = asked[name].model_copy(update=said) if name in asked else limits
    return asked, [each for each in patterns if not any(fnmatchcase(name, each) for name in names)]
