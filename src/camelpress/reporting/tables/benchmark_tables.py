"""The card's benchmarks: a column each, both models and their difference below one another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from camelpress.reporting.model_precision import with_precision
from camelpress.reporting.quoted_values import NOT_RECORDED, format_quoted, value_at

BENCHMARK_METRICS = (  # figure      fact
    ("{reference}",         "reference_accuracy"),
    ("this model",          "candidate_accuracy"),
    ("items",               "n"),
    ("better in the reference", "lost"),
    ("better in this model", "won"),
)  # fmt: skip


def benchmark_facts(facts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The benchmarks of a validation, in its order."""
    found = facts.get("tasks")
    return [
        task
        for task in (found if isinstance(found, list) else [])
        if isinstance(task, Mapping) and task.get("name")
    ]


def card_benchmark_rows(facts: Mapping[str, Any]) -> list[list[str]]:
    """Benchmarks as columns, both models and their difference as rows; none without benchmarks."""
    told = benchmark_facts(facts)
    if not told:
        return []
    average = facts.get("averages")
    ends = [value_at(average, side) for side in ("reference", "candidate")]
    last = [[format_quoted(value_at(average, "name"))], [_percent(ends[0])], [_percent(ends[1])]]
    last.append([_percent(_difference(*ends), sign="+")])
    last.append([_percent_interval(value_at(average, "delta_interval"))])
    rows = [
        ["", *(format_quoted(value_at(task, "title") or value_at(task, "name")) for task in told)],
        [
            with_precision(facts.get("reference"), "reference"),
            *(_percent(value_at(task, "reference_accuracy")) for task in told),
        ],
        ["this model", *(_percent(value_at(task, "candidate_accuracy")) for task in told)],
        ["difference", *(_percent(_delta(task), sign="+") for task in told)],
        ["95 %", *(_percent_interval(value_at(task, "delta_interval")) for task in told)],
        ["items", *(format_quoted(value_at(task, "n")) for task in told)],
        ["better in the reference", *(format_quoted(value_at(task, "lost")) for task in told)],
        ["better in this model", *(format_quoted(value_at(task, "won")) for task in told)],
    ]
    if isinstance(average, Mapping):
        for number, row in enumerate(rows):
            row += last[number] if number < len(last) else [""]
    return rows


def skipped_benchmarks(facts: Mapping[str, Any]) -> dict[str, str]:
    """Benchmarks that did not run, and why."""
    found = facts.get("tasks_missing")
    return (
        {name: format_quoted(why) for name, why in found.items()}
        if isinstance(found, Mapping)
        else {}
    )


def benchmarks_outside_mean(facts: Mapping[str, Any]) -> str:
    """The benchmarks that are not in the mean, though the Tulu card's Average has them."""
    found = value_at(facts, "averages.missing")
    return ", ".join(map(format_quoted, found)) if isinstance(found, list) else ""


def _delta(task: Any) -> float | None:
    told = value_at(task, "delta")
    ends = value_at(task, "reference_accuracy"), value_at(task, "candidate_accuracy")
    return told if isinstance(told, float) else _difference(*ends)


def _difference(reference: Any, candidate: Any) -> float | None:
    both = isinstance(reference, float) and isinstance(candidate, float)
    return candidate - reference if both else None


def _percent_interval(value: Any) -> str:
    if isinstance(value, list | tuple) and len(value) == 2:
        return " to ".join(_percent(end, sign="+") for end in value)
    return NOT_RECORDED


def _percent(value: Any, sign: str = "") -> str:
    return f"{100 * value:{sign}.2f} %" if isinstance(value, float) else NOT_RECORDED
