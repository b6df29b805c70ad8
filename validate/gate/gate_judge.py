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
from camelpress.reporting.metrics import COUNT_UNIT, METRICS, find_fact
from camelpress.reporting.stage_report import Check
from camelpress.validate.gate import benchmark_checks, sample_size
from camelpress.validate.gate.pending_check import PendingCheck, finite_interval, is_zero_width
from camelpress.validate.settings import Gate, MaxLimit, MinLimit, TaskGate, TextGate

REVALIDATE_ADVICE = "validate again, for this report is of an earlier version, or was changed"
KL_ROUNDING = 1e-4  # nats that a divergence may lie below 0
LimitsT = TypeVar("LimitsT", TextGate, TaskGate)


def read_gate(path: Path) -> Gate:
    """A gate from YAML; a check that is not named keeps its default.

    Raises:
        RecipeProblem: missing, not YAML, an unknown check or an impossible bound.
    """
    return Gate.parse(read_yaml(path), source=str(path))


def judge_facts(facts: Mapping[str, Any], gate: Gate) -> tuple[Check, ...]:
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
        *_check_part(facts, gate, None),
        *_check_part(early.get("first"), gate.early, f"first {early.get('context', '?')} tokens"),
        *_check_texts(facts, gate),
        *_check_tasks(facts, gate),
    ]
    if not checks:
        raise RecipeProblem("the gate holds no check", next_step="name at least one threshold")
    return tuple(checks)


def _pending_checks(bounds: TextGate, part: str | None) -> Iterator[PendingCheck]:
    for name in METRICS:
        match getattr(bounds, name):
            case MaxLimit(max=threshold):
                yield PendingCheck(name, part, threshold, "max")
            case MinLimit(min=threshold):
                yield PendingCheck(name, part, threshold, "min")


def _check_part(facts: Any, bounds: TextGate, part: str | None) -> Iterator[Check]:
    """Checks one part of the facts: each figure with its interval and what it comes from."""
    source = sample_size.read_sample_size(facts or {})
    for question in _pending_checks(bounds, part):
        measure = METRICS[question.name]
        value, ends = find_fact(facts, measure.path), find_fact(facts, measure.interval)
        if not source.n:
            yield question.to_error("no tokens were scored")
        elif value is None or not isfinite(value):
            fact = measure.path.replace("/", ".")
            why = f"the report has no {fact}" if value is None else f"{fact} is not finite"
            yield question.to_error(why, source)
        elif not -KL_ROUNDING <= value <= (most := 1.0 if measure.limits is AGREEMENT else inf):
            yield question.to_error(
                f"{measure.path.replace('/', '.')} cannot be {value:.5g}", source
            )
        elif measure.has_interval:
            interval = finite_interval(ends, value, 0.0, most)
            advice = source.advise_more(value, interval, question.threshold, measure.lossless_value)
            advice = (
                REVALIDATE_ADVICE if interval is None and is_zero_width(ends, value) else advice
            )
            yield question.by_interval(float(value), interval, source, advice)
        else:
            number = f"{value:,.0f}" if measure.unit == COUNT_UNIT else f"{value:.5g}"
            yield question.by_value(float(value), number, source)


def _check_texts(facts: Mapping[str, Any], gate: Gate) -> Iterator[Check]:
    texts = {text["name"]: text for text in facts.get("texts") or []}
    asked, idle = _match_patterns(gate.texts, list(texts))
    for name, bounds in asked.items():
        yield from _check_part(texts[name], bounds, name)
    for pattern in idle:
        for question in _pending_checks(gate.texts[pattern], pattern):
            yield question.to_error("the report has no text of this name")


def _check_tasks(facts: Mapping[str, Any], gate: Gate) -> Iterator[Check]:
    tasks = {task["name"]: task for task in facts.get("tasks") or []}
    asked, idle = _match_patterns(gate.tasks, list(tasks))
    yield from benchmark_checks.check_tasks([(tasks[name], bound) for name, bound in asked.items()])
    for pattern in idle:
        for question in benchmark_checks.pending_task_checks(pattern, gate.tasks[pattern]):
            yield question.to_error("the report has no task of this name")


def _match_patterns(
    patterns: Mapping[str, LimitsT], names: Sequence[str]
) -> tuple[dict[str, LimitsT], list[str]]:
    """What is asked of each name, and the patterns that fit none.

    Of two patterns that fit one name and speak of the same figure, the later one wins.
    """
    asked: dict[str, LimitsT] = {}
    for name in names:
        for pattern, limits in patterns.items():
            if fnmatchcase(name, pattern):
                said = {key: getattr(limits, key) for key in limits.model_fields_set}
                asked[name] = asked[name].model_copy(update=said) if name in asked else limits
    return asked, [each for each in patterns if not any(fnmatchcase(name, each) for name in names)]
