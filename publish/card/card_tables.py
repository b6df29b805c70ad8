"""Defines the tables of the card: labels, and the report or config of each value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any, NamedTuple

from camelpress.publish.card.card_markdown import SafeMarkdown
from camelpress.reporting.metrics import metrics_on
from camelpress.reporting.model_precision import with_precision
from camelpress.reporting.number_format import (
    NOT_RECORDED,
    format_limit,
    format_quoted,
    format_quoted_interval,
    format_release_bytes,
)
from camelpress.reporting.quoted_values import text_facts, value_at
from camelpress.reporting.stage_report import Report
from camelpress.reporting.verdict import Check, Verdict


class QuantizationLine(NamedTuple):
    """Line of the quantization table: label, source and path of its value."""

    label: str
    source: str
    path: str


# fmt: off
QUANTIZATION_ROWS = (
    QuantizationLine("`bits`",                          "config",   "bits"),
    QuantizationLine("`group_size`",                    "config",   "group_size"),
    QuantizationLine("`sym`",                           "config",   "sym"),
    QuantizationLine("`desc_act`",                      "config",   "desc_act"),
    QuantizationLine("`checkpoint_format`",             "config",   "checkpoint_format"),
    QuantizationLine("`damp_percent` (a fraction)",     "config",   "damp_percent"),
    QuantizationLine("`engine` of camelpress",          "quantize", "facts.engine.name"),
    QuantizationLine("method",                          "quantize", "facts.method"),
    QuantizationLine("`correction`",                    "quantize", "settings.correction"),
    QuantizationLine("seed",                            "quantize", "settings.seed"),
    QuantizationLine("calibration format",              "quantize", "facts.calibration.format"),
    QuantizationLine("calibration samples",             "quantize", "facts.calibration.samples"),
    QuantizationLine("calibration tokens",              "quantize", "facts.calibration.tokens"),
    QuantizationLine("calibration tokens that count",   "quantize",
                     "facts.calibration.counted_tokens"),
    QuantizationLine("`calibration_mask`",              "quantize", "settings.calibration_mask"),
    QuantizationLine("calibration sequence length",     "quantize",
                     "facts.calibration.sequence_length"),
    QuantizationLine("licence of the calibration",      "publish",  "calibration_license"),
    QuantizationLine("layers that needed a rescue",     "quantize", "facts.rescues"),
    QuantizationLine("layers beyond the error limit",   "quantize", "facts.lost"),
    QuantizationLine("overlap with the texts checked",  "validate", "facts.overlap.checked"),
    QuantizationLine("overlap allowed",                 "validate", "settings.allow_overlap"),
    QuantizationLine("bits per weight", "validate", "facts.candidate.bits_per_weight"),
    QuantizationLine("parameters",                      "validate", "facts.candidate.parameters"),
)
# fmt: on
COUNT_ROWS = {"tokens scored": "tokens", "sequences": "sequences"}  # label to fact
TEXT_COUNTS = ("sequences", "tokens")


def quantization_rows(sources: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns labels and values of the quantization table."""
    rows: list[tuple[str, str]] = [
        (SafeMarkdown(row.label), format_quoted(value_at(sources, f"{row.source}.{row.path}")))
        for row in QUANTIZATION_ROWS
    ]
    files = value_at(sources, "quantize.facts.calibration.files")
    for entry in files if isinstance(files, list) else []:
        rows.append(
            ("calibration text", f"{format_quoted(value_at(entry, 'name'))}, sha256 {_hash(entry)}")
        )
    if not files:
        rows.append(("calibration text", NOT_RECORDED))
    return rows


def size_rows(config: Mapping[str, Any], shape: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns labels and values of the size table: weights, KV cache and tensor parallelism.

    Args:
        config: config of the model.
        shape: result of `release_shape`.
    """
    weights = nbytes if isinstance(nbytes := value_at(shape, "bytes"), int) else None
    cache = _cache_bytes(config)
    positions = format_quoted(config.get("max_position_embeddings"))
    degrees = value_at(shape, "degrees")
    pairs = degrees.items() if isinstance(degrees, Mapping) else ()
    shares = ["1", *(str(size) for size, fits in pairs if fits is True)]
    return [
        ("weights", format_release_bytes(weights)),
        (
            f"keys and values of a sequence of {positions} tokens, 2 bytes a number",
            format_release_bytes(cache),
        ),
        (
            "both; an engine adds its own",
            format_release_bytes(weights + cache if weights and cache else None),
        ),
        ("devices that tensor parallelism can share it over", ", ".join(shares)),
    ]


def _cache_bytes(config: Mapping[str, Any]) -> int | None:
    """Computes bytes of keys and values over the whole context at 2 bytes per number."""
    heads, hidden = (config.get(key) for key in ("num_attention_heads", "hidden_size"))
    if not isinstance(heads, int) or not isinstance(hidden, int) or not heads:
        return None
    parts: list[Any] = [
        config.get("num_hidden_layers"),
        config.get("num_key_value_heads") or heads,
        config.get("head_dim") or hidden // heads,
        config.get("max_position_embeddings"),
    ]
    return 2 * 2 * prod(parts) if all(isinstance(part, int) for part in parts) else None


def validation_rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yields label, value and 95 % interval of each metric; the interval may be empty."""
    reference = with_precision(facts.get("reference"), "reference")
    for metric in metrics_on("card"):
        ends = format_quoted_interval(metric.interval(facts)) if metric.has_interval else ""
        yield metric.text("card", reference=reference), format_quoted(metric.value(facts)), ends
    for label, fact in COUNT_ROWS.items():
        yield label, format_quoted(facts.get(fact)), ""
    percentiles = facts.get("kl_percentiles")
    if isinstance(percentiles, Mapping):
        for name, value in percentiles.items():
            suffix = "largest" if name == "max" else f"percentile {name}"
            yield f"KL divergence, {suffix}", format_quoted(value), ""


def card_text_columns(facts: Mapping[str, Any]) -> list[str]:
    """Returns the column heads of the per-text table."""
    reference = with_precision(facts.get("reference"), "reference")
    return list(card_text_values({}, reference))


def card_text_rows(facts: Mapping[str, Any]) -> list[list[str]]:
    """Returns the rows of the per-text table: name, then one value per column."""
    return [
        [
            format_quoted(value_at(text, "name")),
            *map(format_quoted, card_text_values(text).values()),
        ]
        for text in text_facts(facts)
    ]


def card_values(facts: Any) -> dict[str, Any]:
    """Maps the labels of the validation table to values, without the precision of the reference."""
    metrics = {
        metric.text("card", reference="reference"): metric.value(facts)
        for metric in metrics_on("card")
    }
    return metrics | {label: value_at(facts, fact) for label, fact in COUNT_ROWS.items()}


def card_text_values(text: Any, reference: str = "reference") -> dict[str, Any]:
    """Maps the heads of the per-text table to the values of one text."""
    return {name: value_at(text, name) for name in TEXT_COUNTS} | {
        metric.text("card_column", reference=reference): metric.value(text)
        for metric in metrics_on("card_column")
    }


def card_check_rows(report: Report) -> list[tuple[str, Verdict, str, str, str]]:
    """Returns name, verdict, estimate, interval and threshold of each gate check."""
    return [
        (
            f"{check.name}, {check.part}" if check.part else check.name,
            check.verdict,
            format_quoted(check.estimate),
            _ends(check),
            format_limit(check.threshold, check.direction),
        )
        for check in report.checks
    ]


def _ends(check: Check) -> str:
    """Formats the interval of a check; "unbounded" for an inconclusive check without one."""
    if check.interval is None:
        return "unbounded" if check.verdict is Verdict.INCONCLUSIVE else "none"
    return format_quoted_interval(check.interval)


def input_hashes(
    validation: Report, quantize: Report | None, recover: Report | None
) -> dict[str, str]:
    """Maps all inputs, from the raw model to the evaluation texts, to their hashes."""
    files = value_at(quantize.facts.record if quantize else None, "calibration.files")
    calibration = {
        f"calibration:{format_quoted(value_at(entry, 'name'))}": _hash(entry)
        for entry in (files if isinstance(files, list) else [])
    }
    reports = [report.inputs for report in (recover, quantize) if report is not None]
    return {
        name: digest
        for hashes in (*reports, calibration, validation.inputs)
        for name, digest in hashes.items()
    }


def _hash(entry: Any) -> str:
    return format_quoted(value_at(entry, "sha256"))
