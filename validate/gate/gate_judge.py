"""Judges the facts of a report by a gate: a metric passes only if its whole interval does.

Only the facts of a report are judged, so a report can be judged again without its models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from math import inf, isfinite
from pathlib import Path
from typing import TypeVar

from camelpress.core.errors import RecipeProblem
from camelpress.core.files.yaml_files import read_yaml
from camelpress.reporting.facts.validation_facts import TextFigures, ValidateFacts
from camelpress.reporting.metrics import COUNT_UNIT, METRICS
from camelpress.reporting.number_format import GATE_DIGITS, format_count, format_digits
from camelpress.reporting.verdict import Check
from camelpress.validate.gate import benchmark_checks, sample_size
from camelpress.validate.gate.pending_check import PendingCheck, finite_interval, is_zero_width
from camelpress.validate.settings import LIMIT_RANGES, Gate, MaxLimit, MinLimit, TaskGate, TextGate

STORE_ADVICE = ": a store has no logits to compute it from; validate against the model itself"
REVALIDATE_ADVICE = "validate again, this report was written by an earlier version or edited"
KL_ROUNDING = 1e-4  # nats; tolerated rounding of a divergence below 0
LimitsT = TypeVar("LimitsT", TextGate, TaskGate)


def read_gate(path: Path) -> Gate:
    """Reads a gate from YAML; checks missing from the file keep their default.

    Raises:
        RecipeProblem: the file is missing or not YAML, a check is unknown, or a limit is
            impossible.
    """
    return Gate.parse(read_yaml(path), source=str(path))


def judge_facts(facts: ValidateFacts, gate: Gate) -> tuple[Check, ...]:
    """Judges each metric that has a limit in the gate.

    PASS: the whole 95 % interval is within the limit. FAIL: the whole interval is beyond it.
    INCONCLUSIVE: the interval contains the limit, or comes from fewer than
    `verdict.MIN_PIECES` pieces of text; the reason estimates a sufficient amount. ERROR: the
    report lacks the metric, its value is not finite, or no tokens were scored.

    Args:
        facts: facts of a validation report.
        gate: limits for all texts, the beginnings of windows, single texts and tasks.
    Raises:
        RecipeProblem: the gate has no check.
    """
    early = facts.early
    checks = [
        *_check_part(facts, facts, gate, None),
        *_check_part(
            facts,
            early.first if early else None,
            gate.early,
            f"first {early.context if early else '?'} tokens",
        ),
        *_check_texts(facts, gate),
        *_check_tasks(facts, gate),
    ]
    if not checks:
        raise RecipeProblem("the gate holds no check", next_step="name at least one threshold")
    return tuple(checks)


def _pending_checks(limits: TextGate, part: str | None) -> Iterator[PendingCheck]:
    for name in LIMIT_RANGES:
        match getattr(limits, name):
            case MaxLimit(max=threshold):
                yield PendingCheck(name, part, threshold, "max")
            case MinLimit(min=threshold):
                yield PendingCheck(name, part, threshold, "min")


def _check_part(
    facts: ValidateFacts, figures: TextFigures | None, limits: TextGate, part: str | None
) -> Iterator[Check]:
    """Yields the checks of one part of the facts, with interval and sample size."""
    source = sample_size.read_sample_size(figures)
    for check in _pending_checks(limits, part):
        metric = METRICS[check.name]
        value, ends = metric.value(figures), metric.interval(figures)
        maximum = metric.limits.high if metric.limits and metric.direction == "min" else inf
        if not source.n:
            yield check.to_error("no tokens were scored")
        elif value is None:
            advice = STORE_ADVICE if facts.store and metric.is_computed else ""
            yield check.to_error(f"the report has no {metric.fact}{advice}", source)
        elif not isfinite(value):
            yield check.to_error(f"{metric.fact} is not finite", source)
        elif not -KL_ROUNDING <= value <= maximum:
            number = format_digits(value, GATE_DIGITS)
            yield check.to_error(f"{metric.fact} cannot be {number}", source)
        elif metric.has_interval:
            interval = finite_interval(ends, value, 0.0, maximum)
            advice = source.advise_more(value, interval, check.threshold, metric.lossless_value)
            advice = (
                REVALIDATE_ADVICE if interval is None and is_zero_width(ends, value) else advice
            )
            yield check.decide_by_interval(float(value), interval, source, advice)
        else:
            number = (
                format_count(value)
                if metric.unit == COUNT_UNIT
                else format_digits(value, GATE_DIGITS)
            )
            yield check.decide_by_value(float(value), number, source)


def _check_texts(facts: ValidateFacts, gate: Gate) -> Iterator[Check]:
    texts = {text.name: text for text in facts.texts}
    limits_by_name, unmatched_patterns = _match_patterns(gate.texts, list(texts))
    for name, limits in limits_by_name.items():
        yield from _check_part(facts, texts[name], limits, name)
    for pattern in unmatched_patterns:
        for check in _pending_checks(gate.texts[pattern], pattern):
            yield check.to_error("the report has no text of this name")


def _check_tasks(facts: ValidateFacts, gate: Gate) -> Iterator[Check]:
    tasks = {task.name: task for task in facts.tasks}
    limits_by_name, unmatched_patterns = _match_patterns(gate.tasks, list(tasks))
    yield from benchmark_checks.check_tasks(
        [(tasks[name], limits) for name, limits in limits_by_name.items()]
    )
    for pattern in unmatched_patterns:
        for check in benchmark_checks.pending_task_checks(pattern, gate.tasks[pattern]):
            yield check.to_error("the report has no task of this name")


def _match_patterns(
    patterns: Mapping[str, LimitsT], names: Sequence[str]
) -> tuple[dict[str, LimitsT], list[str]]:
    """Returns the limits for each matched name, and the patterns without a match.

    A later pattern overrides the limits that an earlier one set for the same name and metric.
    """
    limits_by_name: dict[str, LimitsT] = {}
    for name in names:
        for pattern, limits in patterns.items():
            if fnmatchcase(name, pattern):
                set_limits = {key: getattr(limits, key) for key in limits.model_fields_set}
                limits_by_name[name] = (
                    limits_by_name[name].model_copy(update=set_limits)
                    if name in limits_by_name
                    else limits
                )
    return limits_by_name, [
        pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in names)
    ]
