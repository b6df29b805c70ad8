"""Builds the benchmark table of a card: a column per benchmark, a row per figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from camelpress.reporting.model_precision import with_precision
from camelpress.reporting.number_format import (
    format_quoted,
    format_quoted_percent,
    format_quoted_percent_interval,
)
from camelpress.reporting.quoted_values import value_at

BENCHMARK_METRICS = (  # label, fact
    ("{reference}",         "reference_accuracy"),
    ("this model",          "candidate_accuracy"),
    ("items",               "n"),
    ("better in the reference", "lost"),
    ("better in this model", "won"),
)  # fmt: skip


def benchmark_facts(facts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the benchmarks of a validation, in the order of its report."""
    tasks = facts.get("tasks")
    rows = tasks if isinstance(tasks, list) else []
    return [task for task in rows if isinstance(task, Mapping) and task.get("name")]


def card_benchmark_rows(facts: Mapping[str, Any]) -> list[list[str]]:
    """Builds the rows of the table: header, both models, difference; [] without benchmarks."""
    tasks = benchmark_facts(facts)
    if not tasks:
        return []
    average = facts.get("averages")
    ends = [value_at(average, side) for side in ("reference", "candidate")]
    last = [
        [format_quoted(value_at(average, "name"))],
        [format_quoted_percent(ends[0])],
        [format_quoted_percent(ends[1])],
        [format_quoted_percent(_difference(*ends), sign=True)],
        [format_quoted_percent_interval(value_at(average, "delta_interval"))],
    ]
    rows = [
        ["", *(format_quoted(value_at(task, "title") or value_at(task, "name")) for task in tasks)],
        [
            with_precision(facts.get("reference"), "reference"),
            *(format_quoted_percent(value_at(task, "reference_accuracy")) for task in tasks),
        ],
        [
            "this model",
            *(format_quoted_percent(value_at(task, "candidate_accuracy")) for task in tasks),
        ],
        ["difference", *(format_quoted_percent(_delta(task), sign=True) for task in tasks)],
        [
            "95 %",
            *(format_quoted_percent_interval(value_at(task, "delta_interval")) for task in tasks),
        ],
        ["items", *(format_quoted(value_at(task, "n")) for task in tasks)],
        ["better in the reference", *(format_quoted(value_at(task, "lost")) for task in tasks)],
        ["better in this model", *(format_quoted(value_at(task, "won")) for task in tasks)],
    ]
    if isinstance(average, Mapping):
        for number, row in enumerate(rows):
            row += last[number] if number < len(last) else [""]
    return rows


def skipped_benchmarks(facts: Mapping[str, Any]) -> dict[str, str]:
    """Returns the benchmarks that did not run, with the reason."""
    missing = facts.get("tasks_missing")
    if not isinstance(missing, Mapping):
        return {}
    return {name: format_quoted(reason) for name, reason in missing.items()}


def benchmarks_outside_mean(facts: Mapping[str, Any]) -> str:
    """Lists the benchmarks of the Tulu card's Average missing from the mean."""
    missing = value_at(facts, "averages.missing")
    return ", ".join(map(format_quoted, missing)) if isinstance(missing, list) else ""


def _delta(task: Any) -> float | None:
    delta = value_at(task, "delta")
    scores = value_at(task, "reference_accuracy"), value_at(task, "candidate_accuracy")
    return delta if isinstance(delta, float) else _difference(*scores)


def _difference(reference: Any, candidate: Any) -> float | None:
    both = isinstance(reference, float) and isinstance(candidate, float)
    return candidate - reference if both else None
