"""Writes the sentences of a validation report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from camelpress.core.documents.omissions import omission_rows
from camelpress.reporting.facts.store_facts import StoreFacts, StoreTextFacts
from camelpress.reporting.facts.task_facts import TaskFacts
from camelpress.reporting.facts.validation_facts import (
    ModelFacts,
    TextCounts,
    TextFacts,
    ValidateFacts,
)
from camelpress.reporting.number_format import (
    NBSP,
    Number,
    check_title,
    format_count,
    format_significant,
)
from camelpress.reporting.stage_report import Report
from camelpress.reporting.verdict import Check, Verdict

# fmt: off
VERDICT_SYMBOLS = {
    Verdict.PASS: "✓", Verdict.FAIL: "✕", Verdict.INCONCLUSIVE: "?", Verdict.ERROR: "!", None: "○",
}
VERDICT_CLAUSES = {  #            one check                              several
    Verdict.PASS:         ("holds",                              "hold"),
    Verdict.FAIL:         ("fails",                              "fail"),
    Verdict.INCONCLUSIVE: ("cannot be decided on so little",) * 2,
    Verdict.ERROR:        ("could not be evaluated, which is not a pass",) * 2,
}
# fmt: on
MAX_NAMED_CHECKS = 6  # checks in one sentence
NO_CHECKS_SENTENCE = "No check was evaluated, which is not a pass."


def enumerate_words(words: Sequence[str]) -> str:
    """Joins words into an enumeration: `a, b and c`."""
    return " and ".join(part for part in (", ".join(words[:-1]), *words[-1:]) if part)


def verdict_sentence(report: Report) -> str:
    """States the verdict in one sentence."""
    if report.verdict is None:
        return "Measured, not judged: no thresholds were given."
    if not report.checks:
        return NO_CHECKS_SENTENCE
    titles = [_lowercase_title(check) for check in report.checks if check.verdict is report.verdict]
    check_count = len(report.checks)
    unnamed = len(titles) - MAX_NAMED_CHECKS
    named = [*titles[:MAX_NAMED_CHECKS], f"{unnamed} more"] if unnamed > 1 else titles
    clause = VERDICT_CLAUSES[report.verdict][len(titles) != 1]
    if check_count == 1:
        return f"The only check, {_lowercase_title(report.checks[0])}, {clause}."
    if len(titles) == check_count:
        return f"All {check_count} checks {clause}."
    return f"{len(titles)} of {check_count} checks {clause}: {enumerate_words(named)}."


def _lowercase_title(check: Check) -> str:
    title = check_title(check)
    return title[0].lower() + title[1:]


def percentile_sentence(values: Mapping[str, Number | None]) -> str:
    """States the percentiles of the divergence of a token, in nats; `max` is the largest."""
    clauses = [
        f"{'half are' if name == '50' else f'{name}{NBSP}%'} within {format_significant(value, 2)}"
        for name, value in values.items()
        if name != "max"
    ]
    largest = f"; the largest is {format_significant(values['max'], 2)}" if "max" in values else ""
    return f"Of the tokens, {enumerate_words(clauses)} nats{largest}."


def quantization_phrase(model: ModelFacts) -> str:
    """Describes the storage of a model's weights from its facts."""
    if not model.bits:
        return "none any more: written out of codes" if model.dequantized else "none"
    groups = model.group_size or 0
    words = [f"{model.bits} bits", f"groups of {groups}" if groups > 0 else "one group per row"]
    if model.sym is not None:
        words.append("symmetric" if model.sym else "asymmetric")
    return ", ".join(words)


def repeats_sentence(part: TextCounts | StoreFacts, noun: str) -> str:
    """States the number of repeated pieces of text, or "" without repeats."""
    if not part.repeats:
        return ""
    return _repeats_clause(part.repeats, part.repeats + part.sequences, noun)


def duplicate_items_sentence(task: TaskFacts) -> str:
    """States the number of repeated items of a task, or "" without repeats."""
    if task.distinct is None:
        return ""
    return _repeats_clause(task.n - task.distinct.n, task.n, "items")


def _repeats_clause(count: int, total: int, noun: str) -> str:
    return (
        f"{format_count(count)} of {format_count(total)} {noun} repeat another, and count with it"
    )


def missing_benchmarks_sentence(facts: ValidateFacts) -> str:
    """States the benchmarks missing from the mean, or "" if the mean is complete."""
    missing = facts.averages.missing if facts.averages else []
    columns = "a column of it is" if len(missing) == 1 else "columns of theirs are"
    return (
        f"The mean is without {enumerate_words(missing)}: {columns} not there." if missing else ""
    )


def text_omission_rows(texts: Sequence[TextFacts | StoreTextFacts]) -> list[tuple[str, str]]:
    """Returns label and text for all omissions from the texts of a report."""
    return [row for text in texts for row in omission_rows(text.name, text.omissions, text.rows)]


def omission_sentences(facts: ValidateFacts) -> list[str]:
    """Returns one sentence per kind of row or field that the texts leave out."""
    rows = text_omission_rows(facts.texts)
    return [f"{label.capitalize()} of {text}." for label, text in rows]


def response_text(answer: Mapping[str, Any]) -> str:
    """Returns a model's answer to an item: its choice, or its words."""
    if answer.get("chosen") is not None:
        return str(answer["chosen"]).strip()
    responses = answer["responses"]
    return "\n\n".join(map(str, responses)) if isinstance(responses, list) else str(responses)
