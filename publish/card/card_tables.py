"""Builds the tables of the card on size, validation, checks and inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from camelpress.reporting.facts.validation_facts import TextFacts, ValidateFacts
from camelpress.reporting.metrics import metrics_on
from camelpress.reporting.model_precision import with_precision
from camelpress.reporting.number_format import (
    format_limit,
    format_quoted,
    format_quoted_interval,
    format_release_bytes,
)
from camelpress.reporting.report_classes import QuantizeReport, RecoverReport, ValidationReport
from camelpress.reporting.stage_report import Report
from camelpress.reporting.verdict import Check, Verdict


def size_rows(config: Mapping[str, Any], shape: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns labels and values of the size table: weights, KV cache and tensor parallelism.

    Args:
        config: config of the model.
        shape: result of `release_shape`.
    """
    weights = nbytes if isinstance(nbytes := shape.get("bytes"), int) else None
    cache = _cache_bytes(config)
    positions = format_quoted(config.get("max_position_embeddings"))
    degrees = shape.get("degrees")
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


def validation_rows(facts: ValidateFacts) -> Iterator[tuple[str, str, str]]:
    """Yields label, value and 95 % interval of each metric; the interval may be empty."""
    reference = with_precision(facts.reference, "reference")
    for metric in metrics_on("card"):
        ends = format_quoted_interval(metric.interval(facts)) if metric.has_interval else ""
        yield metric.text("card", reference=reference), format_quoted(metric.value(facts)), ends
    for label, count in _count_values(facts).items():
        yield label, format_quoted(count), ""
    for name, value in (facts.kl_percentiles or {}).items():
        suffix = "largest" if name == "max" else f"percentile {name}"
        yield f"KL divergence, {suffix}", format_quoted(value), ""


def _count_values(facts: ValidateFacts) -> dict[str, int | None]:
    return {"tokens scored": facts.tokens, "sequences": facts.sequences}


def card_text_columns(facts: ValidateFacts) -> list[str]:
    """Returns the column heads of the per-text table."""
    reference = with_precision(facts.reference, "reference")
    return list(card_text_values(TextFacts.read({}), reference))


def card_text_rows(facts: ValidateFacts) -> list[list[str]]:
    """Returns the rows of the per-text table: name, then one value per column."""
    return [
        [format_quoted(text.name), *map(format_quoted, card_text_values(text).values())]
        for text in facts.texts or []
    ]


def card_values(facts: ValidateFacts) -> dict[str, Any]:
    """Maps the labels of the validation table to values, without the precision of the reference."""
    metrics = {
        metric.text("card", reference="reference"): metric.value(facts)
        for metric in metrics_on("card")
    }
    return metrics | _count_values(facts)


def card_text_values(text: TextFacts, reference: str = "reference") -> dict[str, Any]:
    """Maps the heads of the per-text table to the values of one text."""
    return {"sequences": text.sequences, "tokens": text.tokens} | {
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
    validation: ValidationReport, quantize: QuantizeReport | None, recover: RecoverReport | None
) -> dict[str, str]:
    """Maps all inputs, from the raw model to the evaluation texts, to their hashes."""
    calibration = {
        f"calibration:{format_quoted(file.name)}": format_quoted(file.sha256)
        for file in (quantize.facts.calibration_files if quantize else [])
    }
    reports = [report.inputs for report in (recover, quantize) if report is not None]
    return {
        name: digest
        for hashes in (*reports, calibration, validation.inputs)
        for name, digest in hashes.items()
    }
