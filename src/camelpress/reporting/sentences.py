"""The sentences of a validation report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from camelpress.core.documents.omissions import omission_rows
from camelpress.reporting.number_format import NBSP, Number, check_title, format_significant
from camelpress.reporting.stage_report import Check, Report, Verdict

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
    """Words as an enumeration: `a, b and c`."""
    return " and ".join(part for part in (", ".join(words[:-1]), *words[-1:]) if part)


def verdict_sentence(report: Report) -> str:
    """The verdict as one sentence."""
    if report.verdict is None:
        return "Measured, not judged: no thresholds were given."
    if not report.checks:
        return NO_CHECKS_SENTENCE
    found = [_lowercase_title(check) for check in report.checks if check.verdict is report.verdict]
    every = len(report.checks)
    more = len(found) - MAX_NAMED_CHECKS
    named = [*found[:MAX_NAMED_CHECKS], f"{more} more"] if more > 1 else found
    clause = VERDICT_CLAUSES[report.verdict][len(found) != 1]
    if every == 1:
        return f"The only check, {_lowercase_title(report.checks[0])}, {clause}."
    if len(found) == every:
        return f"All {every} checks {clause}."
    return f"{len(found)} of {every} checks {clause}: {enumerate_words(named)}."


def _lowercase_title(check: Check) -> str:
    told = check_title(check)
    return told[0].lower() + told[1:]


def percentile_sentence(values: Mapping[str, Number | None]) -> str:
    """Within which divergence so many of the tokens lie; `max` is the largest."""
    told = [
        f"{'half are' if name == '50' else f'{name}{NBSP}%'} within {format_significant(value, 2)}"
        for name, value in values.items()
        if name != "max"
    ]
    largest = f"; the largest is {format_significant(values['max'], 2)}" if "max" in values else ""
    return f"Of the tokens, {enumerate_words(told)} nats{largest}."


def quantization_phrase(model: Mapping[str, Any]) -> str:
    """How a model's weights are stored, from its facts."""
    if not model.get("bits"):
        return "none any more: written out of codes" if model.get("dequantized") else "none"
    groups = model.get("group_size") or 0
    told = [f"{model['bits']} bits", f"groups of {groups}" if groups > 0 else "one group per row"]
    if model.get("sym") is not None:
        told.append("symmetric" if model["sym"] else "asymmetric")
    return ", ".join(told)


def repeats_sentence(part: Mapping[str, Any], noun: str) -> str:
    """How many pieces of text count for another that they repeat; nothing where none does."""
    count = part.get("repeats") or 0
    every = count + part["sequences"]
    return f"{count:,} of {every:,} {noun} repeat another, and count with it" if count else ""


def duplicate_items_sentence(task: Mapping[str, Any]) -> str:
    """How many items of a task repeat another; nothing where none does."""
    distinct = task.get("distinct")
    if not distinct:
        return ""
    count = task["n"] - distinct["n"]
    return f"{count:,} of {task['n']:,} items repeat another, and count with it"


def missing_benchmarks_sentence(facts: Mapping[str, Any]) -> str:
    """What the mean of the benchmarks is made without; nothing where it is the card's."""
    missing = (facts.get("averages") or {}).get("missing") or []
    columns = "a column of it is" if len(missing) == 1 else "columns of theirs are"
    return (
        f"The mean is without {enumerate_words(missing)}: {columns} not there." if missing else ""
    )


def omission_sentences(facts: Mapping[str, Any]) -> list[str]:
    """Returns a sentence for everything that the texts of a report leave out."""
    rows = omission_rows(facts["texts"])
    return [f"{label.capitalize()} of {text}." for label, text in rows]


def response_text(told: Mapping[str, Any]) -> str:
    """What a model answered to an item: the choice that it took, or its words."""
    if told.get("chosen") is not None:
        return str(told["chosen"]).strip()
    responses = told["responses"]
    return "\n\n".join(map(str, responses)) if isinstance(responses, list) else str(responses)
