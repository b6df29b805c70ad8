"""Refuses unfit validation reports, and writes the caveats at the top of the card.

refused                     a model compared with itself, a quantized reference without the
                            setting for it, a PASS contradicted by its own estimates
refused without a reason    no PASS, or a PASS from benchmarks alone
caveat on the card          the second row, a quantized reference, a reference other than the
                            source of the weights, or an unknown source
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from camelpress.core.errors import ReleaseRefusal
from camelpress.publish.settings import PublishSettings
from camelpress.reporting.metrics import METRICS, TASK_METRICS
from camelpress.reporting.model_precision import (
    is_quantized,
    model_precision,
    quantized_reference_caveat,
)
from camelpress.reporting.number_format import format_digits, format_gate_interval
from camelpress.reporting.report_classes import QuantizeReport, ValidationReport
from camelpress.reporting.stage_report import Report
from camelpress.reporting.verdict import MIN_PIECES, Check, Verdict

QUANTIZED_REFERENCE_KEY = "allow_quantized_reference"  # key in the settings of validate
NON_TEXT_CHECKS = frozenset(  # checks without a bound on differences of text predictions
    {*TASK_METRICS, *(name for name, metric in METRICS.items() if not metric.has_interval)}
)


def require_publishable(
    report: ValidationReport, report_dir: Path, settings: PublishSettings
) -> None:
    """Refuses a validation report that is unfit for a release.

    Args:
        report: validation report.
        report_dir: folder of the report, for the message.
        settings: publish settings, with the optional reason to publish without a full PASS.
    Raises:
        ReleaseRefusal: the report measures nothing, contradicts its own verdict, or lacks a PASS
            from text checks and the settings give no reason.
    """
    _require_measurement(report, report_dir)
    _require_consistent_pass(report, report_dir)
    if settings.allow_failed_gate:
        return
    if report.verdict is not Verdict.PASS:
        raise ReleaseRefusal(
            f"{report_dir} says {_failure(report)}",
            next_step="publish a model that passes its gate, or give a reason to publish this one "
            "with --allow-failed-gate",
        )
    if not has_text_check(report):
        raise ReleaseRefusal(
            f"{report_dir} passed without a check of how predictions on text differ",
            next_step="validate with --text and a gate on text, or give a reason to publish "
            "without one with --allow-failed-gate",
        )


def release_caveats(report: ValidationReport, quantize: QuantizeReport | None) -> list[str]:
    """Returns the caveats of a release as sentences; an empty list for a full PASS.

    Args:
        report: validation report.
        quantize: quantization report in the model folder, if present.
    """
    return [
        *_verdict_caveats(report),
        *filter(None, [quantized_reference_caveat(report.facts.reference)]),
        *_source_caveats(report, quantize),
    ]


def needs_reason(report: Report) -> bool:
    """Returns True if a release with this report needs a reason."""
    return report.verdict is not Verdict.PASS or not has_text_check(report)


def has_text_check(report: Report) -> bool:
    """Returns True if the gate has a check on text predictions."""
    return any(check.name not in NON_TEXT_CHECKS for check in report.checks)


def reference_is_source(report: Report, quantize: Report | None) -> bool | None:
    """Returns True if the reference is the source of the weights; None if unknown."""
    source = quantize.inputs.get("source") if quantize else None
    return None if source is None else report.inputs.get("reference") == source


def _require_measurement(report: ValidationReport, report_dir: Path) -> None:
    reference = report.facts.reference
    if report.inputs.get("reference") == report.inputs.get("candidate"):
        raise ReleaseRefusal(
            f"{report_dir} compares the model with itself, which measures nothing",
            next_step="validate it against the model before quantization",
        )
    if is_quantized(reference) and report.settings.get(QUANTIZED_REFERENCE_KEY) is not True:
        raise ReleaseRefusal(
            f"{report_dir} measured against a model that is itself quantized "
            f"({model_precision(reference)})",
            next_step="validate against the model before it was quantized, or with "
            "--allow-quantized-reference",
        )


def _require_consistent_pass(report: Report, report_dir: Path) -> None:
    """Refuses a PASS contradicted by its checks, from an older version or an edited file."""
    if report.verdict is not Verdict.PASS:
        return
    for check in report.checks:
        if reason := _contradiction(check):
            raise ReleaseRefusal(
                f"{report_dir} says PASS, but its {check.name} contradicts it: {reason}",
                next_step=f"judge it by current rules with camelpress gate {report_dir} --out NEW, "
                "and publish with --report NEW",
            )


def _contradiction(check: Check) -> str:
    """Returns the reason against a PASS of a check; an empty string for a valid PASS."""
    if check.verdict is not Verdict.PASS:
        return f"it is {check.verdict}"
    if check.estimate is None:
        return "it has no estimate"
    low, high = ends = check.interval or (check.estimate, check.estimate)
    is_within = high <= check.threshold if check.direction == "max" else low >= check.threshold
    if not is_within:
        return f"{format_gate_interval(ends)} is not within {format_digits(check.threshold)}"
    if check.name in NON_TEXT_CHECKS:
        return ""
    if check.clusters < MIN_PIECES:
        return f"it comes from fewer than {MIN_PIECES} pieces of text"
    return "" if low < high else "its interval has no width"


def _failure(report: Report) -> str:
    checks = [check for check in report.checks if check.verdict is not Verdict.PASS]
    reasons = ", ".join(f"{check.name}: {check.reason}" for check in checks)
    verdict = report.verdict.value if report.verdict else "that nothing was judged"
    return verdict + (f" ({reasons})" if reasons else "")


def _verdict_caveats(report: Report) -> Iterator[str]:
    verdict = report.verdict or Verdict.ERROR
    if verdict is not Verdict.PASS:
        yield f"This release did not pass its gate: {verdict}."
    elif not has_text_check(report):
        yield "The gate of this release judged no predictions on text."


def _source_caveats(report: Report, quantize: Report | None) -> Iterator[str]:
    match reference_is_source(report, quantize):
        case False:
            yield (
                "The reference of the validation is not, file for file, the model that these "
                "weights were quantized from: the hashes of reference and source differ."
            )
        case None:
            yield (
                "No report says which model these weights were quantized from, so it is not "
                "known whether the reference of the validation is that model."
            )
