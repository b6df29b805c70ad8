"""Builds the rows of a validation page from the numbers of a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

from camelpress.reporting import sentences
from camelpress.reporting.facts.task_facts import AverageFacts, TaskFacts
from camelpress.reporting.facts.validation_facts import ModelFacts, TextFigures, ValidateFacts
from camelpress.reporting.metrics import METRICS, metrics_on
from camelpress.reporting.number_format import (
    NBSP,
    NO_VALUE,
    allowance_used,
    check_title,
    format_bytes,
    format_count,
    format_digits,
    format_estimate,
    format_fixed,
    format_percent,
    format_points,
    format_points_interval,
    format_significant,
    format_threshold,
    metric_of,
)
from camelpress.reporting.tables import preference_tables
from camelpress.reporting.verdict import Check

Row = dict[str, Any]
SIDES = ("reference", "candidate")
MAX_PROMPT_CHARACTERS = 600  # characters shown from the end of a prompt


def model_folder_name(model: ModelFacts) -> str:
    """Returns the last part of a model's path."""
    return PurePath(model.path).name or model.path


def gate_check_row(check: Check) -> Row:
    """Builds the row of one check: quantity, estimate and threshold."""
    value, interval = format_estimate(check.name, check.estimate, check.interval)
    used = allowance_used(check)
    return {
        "title": check_title(check),
        "quantity": metric_of(check.name).title,
        "part": check.part,
        "verdict": check.verdict.value,
        "mark": sentences.VERDICT_SYMBOLS[check.verdict],
        "estimate": value,
        "interval": interval,
        "limit": format_threshold(check),
        "used": NO_VALUE if used is None else format_percent(used, 0),
        "bar": None if used is None else round(100 * min(1, max(0, used))),
        "tokens": format_count(check.n),
        "clusters": format_count(check.clusters),
        "reason": check.reason,
    }


def text_metric_rows(facts: ValidateFacts) -> list[Row]:
    """Builds a row per text, with a row of totals first for several texts."""
    texts = [_text_row(text, text.name) for text in facts.texts]
    if not texts:
        return []
    overall = {**_text_row(facts, "all texts"), "total": True}
    return texts if len(texts) == 1 else [overall, *texts]


def window_start_rows(facts: ValidateFacts) -> list[Row]:
    """Builds the rows of the beginnings of windows and of their remainders."""
    early = facts.early
    if early is None:
        return []
    named = {f"first {early.context} tokens": early.first, "the rest": early.rest}
    return [_text_row(part, name) for name, part in named.items() if part]


def _text_row(facts: TextFigures, name: str) -> Row:
    row = {
        "name": name,
        "total": False,
        "sequences": format_count(facts.sequences),
        "tokens": format_count(facts.tokens),
    }
    for metric in metrics_on("page"):
        value, interval = format_estimate(metric.key, metric.value(facts), metric.interval(facts))
        row |= {metric.key: value, f"{metric.key}_interval": interval}
    return row


def headline_tiles(facts: ValidateFacts) -> list[Row]:
    """Builds the headline tiles: three metrics and the size of the weights."""
    if not facts.tokens:
        return [_size_tile(facts.reference, facts.candidate)]
    before, after = (METRICS[f"{side}_perplexity"].value(facts) for side in SIDES)
    tail = format_significant(facts.kl_percentiles["99"], 3)
    notes = {
        "perplexity_ratio": " → ".join(
            [f"perplexity {format_significant(before)}", format_significant(after)]
        ),
        "kl_mean": f"99{NBSP}% of tokens within {tail}{NBSP}nats",
        "top1_agreement": "both models put the same token first",
    }
    tiles = []
    for name, note in notes.items():
        metric = METRICS[name]
        value, interval = format_estimate(name, metric.value(facts), metric.interval(facts))
        tiles.append({"title": metric.title, "value": value, "interval": interval, "notes": [note]})
    return [*tiles, _size_tile(facts.reference, facts.candidate)]


def benchmark_rows(facts: ValidateFacts) -> list[Row]:
    """Builds a row per benchmark and a row for their mean; scores are percentages."""
    rows = [_task_row(task) for task in facts.tasks]
    return [*rows, _average_row(facts.averages)] if facts.averages else rows


def _task_row(task: TaskFacts) -> Row:
    delta = task.delta if "delta" in task.model_fields_set else task.difference
    loss, of = task.detectable_loss, task.of or task.n
    return {
        "name": task.label,
        "total": False,
        "n": format_count(task.n) + (f" of {format_count(of)}" if of > task.n else ""),
        "reference": format_points(task.reference_accuracy),
        "candidate": format_points(task.candidate_accuracy),
        "delta": format_points(delta, sign=True),
        "interval": format_points_interval(task.delta_interval, sign=True),
        "lost": format_count(task.lost),
        "won": format_count(task.won),
        "p_value": NO_VALUE if task.p_value is None else format_digits(task.p_value, 2),
        "detectable": "none" if loss is None else format_points(loss),
    }


def _average_row(averages: AverageFacts) -> Row:
    empty = dict.fromkeys(("n", "lost", "won", "p_value", "detectable"), NO_VALUE)
    return empty | {
        "name": averages.name,
        "total": True,
        "reference": format_points(averages.reference),
        "candidate": format_points(averages.candidate),
        "delta": format_points(averages.difference, sign=True),
        "interval": format_points_interval(averages.delta_interval, sign=True),
    }


def flip_row(line: Mapping[str, Any]) -> Row:
    """Builds the row of a flipped item: the end of its prompt and both answers."""
    prompt = line["prompt"]
    return {
        "item": str(line["item"]),
        "flip": line["flip"],
        "prompt": f"… {prompt[-MAX_PROMPT_CHARACTERS:]}"
        if len(prompt) > MAX_PROMPT_CHARACTERS
        else prompt,
        "target": str(line["target"]),
        "target_is": "compared with" if line.get("judge") else "right",
        "verdicts": preference_tables.verdicts_phrase(line),
        "scores": {side: format_digits(line[side]["score"]) for side in SIDES},
        **{side: sentences.response_text(line[side]) for side in SIDES},
    }


def quirk_rows(facts: ValidateFacts) -> list[Row]:
    """Builds a row per benchmark with the quirks of its protocol."""
    return [
        {"name": task.label, "quirks": list(task.quirks.values())}
        for task in facts.tasks
        if task.quirks
    ]


def _size_tile(reference: ModelFacts, candidate: ModelFacts) -> Row:
    share = format_percent(candidate.bytes / max(1, reference.bytes), 1)
    bits = candidate.bits_per_weight
    stored = f"{format_fixed(bits, 2)} bits per weight" if bits else f"weights as {candidate.dtype}"
    return {
        "title": "Size",
        "value": format_bytes(candidate.bytes),
        "interval": None,
        "notes": [f"{share} of the reference's {format_bytes(reference.bytes)}", stored],
    }


def _bits(model: ModelFacts) -> str:
    bits = model.bits_per_weight
    return format_fixed(bits, 2) if bits else NO_VALUE


def _weight_size(model: ModelFacts) -> str:
    return f"{format_bytes(model.bytes)} ({format_count(model.bytes)} bytes)"


# fmt: off
MODEL_ROWS: dict[str, Callable[[ModelFacts], str]] = {
    "Folder":          lambda model: model.path,
    "Architecture":    lambda model: model.architecture,
    "Parameters":      lambda model: format_count(model.parameters),
    "Number format":   lambda model: model.dtype,
    "Quantization":    sentences.quantization_phrase,
    "Bits per weight": _bits,
    "Size of weights": _weight_size,
}
# fmt: on


def duplicate_sentences(facts: ValidateFacts) -> list[str]:
    """States the repeated pieces of all texts and the repeated items of each benchmark."""
    clauses = [sentences.repeats_sentence(facts, "pieces of text")]
    for task in facts.tasks:
        copies = sentences.duplicate_items_sentence(task)
        clauses.append(f"{task.label}: {copies}" if copies else "")
    return [f"{clause}." for clause in clauses if clause]


def model_rows(facts: ValidateFacts) -> list[Row]:
    """Builds a row per property of reference and candidate."""
    return [
        {
            "title": title,
            "reference": describe(facts.reference),
            "candidate": describe(facts.candidate),
        }
        for title, describe in MODEL_ROWS.items()
    ]
