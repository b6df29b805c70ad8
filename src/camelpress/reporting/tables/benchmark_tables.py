"""Builds the benchmark table of a card: a column per benchmark, a row per figure."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from camelpress.reporting.facts.task_facts import AverageFacts, TaskFacts
from camelpress.reporting.facts.validation_facts import ValidateFacts
from camelpress.reporting.model_precision import with_precision
from camelpress.reporting.number_format import (
    format_quoted,
    format_quoted_percent,
    format_quoted_percent_interval,
)


class BenchmarkLine(NamedTuple):
    """Figure of a benchmark: label and reader of its value."""

    label: str
    read: Callable[[TaskFacts], float | None]


BENCHMARK_METRICS = (
    BenchmarkLine("{reference}",             lambda task: task.reference_accuracy),
    BenchmarkLine("this model",              lambda task: task.candidate_accuracy),
    BenchmarkLine("items",                   lambda task: task.n),
    BenchmarkLine("better in the reference", lambda task: task.lost),
    BenchmarkLine("better in this model",    lambda task: task.won),
)  # fmt: skip


def benchmark_facts(facts: ValidateFacts) -> list[TaskFacts]:
    """Returns the benchmarks of a validation, in the order of its report."""
    return [task for task in facts.tasks or [] if task.name]


def card_benchmark_rows(facts: ValidateFacts) -> list[list[str]]:
    """Builds the rows of the table: header, both models, difference; [] without benchmarks."""
    tasks = benchmark_facts(facts)
    if not tasks:
        return []
    rows = [
        ["", *(format_quoted(task.title or task.name) for task in tasks)],
        [
            with_precision(facts.reference, "reference"),
            *(format_quoted_percent(task.reference_accuracy) for task in tasks),
        ],
        ["this model", *(format_quoted_percent(task.candidate_accuracy) for task in tasks)],
        ["difference", *(format_quoted_percent(_delta(task), sign=True) for task in tasks)],
        ["95 %", *(format_quoted_percent_interval(task.delta_interval) for task in tasks)],
        ["items", *(format_quoted(task.n) for task in tasks)],
        ["better in the reference", *(format_quoted(task.lost) for task in tasks)],
        ["better in this model", *(format_quoted(task.won) for task in tasks)],
    ]
    if facts.averages is not None:
        last = _average_column(facts.averages)
        for number, row in enumerate(rows):
            row.append(last[number] if number < len(last) else "")
    return rows


def _average_column(average: AverageFacts) -> list[str]:
    """Returns the cells of the mean over benchmarks, from the header to the interval."""
    return [
        format_quoted(average.name),
        format_quoted_percent(average.reference),
        format_quoted_percent(average.candidate),
        format_quoted_percent(_difference(average.reference, average.candidate), sign=True),
        format_quoted_percent_interval(average.delta_interval),
    ]


def skipped_benchmarks(facts: ValidateFacts) -> dict[str, str]:
    """Returns the benchmarks that did not run, with the reason."""
    return facts.tasks_missing or {}


def benchmarks_outside_mean(facts: ValidateFacts) -> str:
    """Lists the benchmarks of the Tulu card's Average missing from the mean."""
    return ", ".join((facts.averages.missing if facts.averages else None) or [])


def _delta(task: TaskFacts) -> float | None:
    if task.delta is not None:
        return task.delta
    return _difference(task.reference_accuracy, task.candidate_accuracy)


def _difference(reference: float | None, candidate: float | None) -> float | None:
    return None if reference is None or candidate is None else candidate - reference
