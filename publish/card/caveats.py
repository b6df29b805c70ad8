"""Says what a release must not be taken for: a card begins with it, and a grave one needs a reason.

refused                     a model against itself, a quantized reference that nobody asked for,
                            a PASS that its own figures do not bear out
refused without a reason    no PASS, or a PASS by tasks alone
said first on the card      all of the second row, a quantized reference, and a reference that
                            is not, or cannot be known to be, the source of the weights
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from camelpress.core.errors import ReleaseRefusal
from camelpress.publish.settings import Publish
from camelpress.reporting.model_precision import (
    is_quantized,
    model_precision,
    quantized_reference_caveat,
)
from camelpress.reporting.stage_report import MIN_PIECES, Check, Report, Verdict

QUANTIZED_REFERENCE_KEY = "allow_quantized_reference"  # the key of validate's settings
NON_TEXT_CHECKS = frozenset(  # checks that do not bound how far the predictions of a text lie apart
    {"accuracy_loss", "significant_loss", "non_finite", "noise_floor", "block_error"}
)


def require_publishable(report: Report, report_dir: Path, settings: Publish) -> None:
    """Refuses a report that cannot stand for a release.

    Args:
        report: of the validation.
        report_dir: its folder, for the message.
        settings: with the reason to publish without a full PASS, if there is one.
    Raises:
        ReleaseRefused: the report measures nothing, contradicts its own verdict, or lacks a PASS
            by text checks and no reason is given.
    """
    _require_measurement(report, report_dir)
    _require_consistent_pass(report, report_dir)
    if settings.allow_failed_gate:
        return
    if report.verdict is not Verdict.PASS:
        raise ReleaseRefusal(
            f"{report_dir} says {_failure(report)}",
            next_step="publish a model that passes its gate, or give the reason to publish this "
            "one with --allow-failed-gate",
        )
    if not has_text_check(report):
        raise ReleaseRefusal(
            f"{report_dir} passed without a check of how predictions on text differ",
            next_step="validate with --text and a gate that judges it, or give the reason to "
            "publish without with --allow-failed-gate",
        )


def release_caveats(report: Report, quantize: Report | None) -> list[str]:
    """Returns the sentences that a card begins with; none where nothing is missing.

    Args:
        report: of the validation.
        quantize: of the stage that made the weights, where the model carries it.
    """
    return [
        *_verdict_caveats(report),
        *filter(None, [quantized_reference_caveat(report.facts)]),
        *_source_caveats(report, quantize),
    ]


def needs_reason(report: Report) -> bool:
    """Returns whether a release of this report has to say why it was published."""
    return report.verdict is not Verdict.PASS or not has_text_check(report)


def has_text_check(report: Report) -> bool:
    """Returns whether the gate judged how predictions on text differ."""
    return any(check.name not in NON_TEXT_CHECKS for check in report.checks)


def reference_is_source(report: Report, quantize: Report | None) -> bool | None:
    """Returns whether the reference is what the weights were quantized from; None if unknown."""
    source = quantize.inputs.get("source") if quantize else None
    return None if source is None else report.inputs.get("reference") == source


def _require_measurement(report: Report, report_dir: Path) -> None:
    reference = report.facts.get("reference")
    if report.inputs.get("reference") == report.inputs.get("candidate"):
        raise ReleaseRefusal(
            f"{report_dir} holds the model against itself, which measures nothing",
            next_step="validate it against the model that it was quantized from",
        )
    if is_quantized(reference) and report.settings.get(QUANTIZED_REFERENCE_KEY) is not True:
        raise ReleaseRefusal(
            f"{report_dir} measured against a model that is itself quantized "
            f"({model_precision(reference)})",
            next_step="validate against the model before it was quantized, or with "
            "--allow-quantized-reference",
        )


def _require_consistent_pass(report: Report, report_dir: Path) -> None:
    """Refuses a PASS that its checks deny: an earlier version or an editor wrote it."""
    if report.verdict is not Verdict.PASS:
        return
    for check in report.checks:
        if reason := _contradiction(check):
            raise ReleaseRefusal(
                f"{report_dir} says PASS, which its {check.name} does not bear out: {reason}",
                next_step=f"judge it by today's rules with camelpress gate {report_dir} --out NEW, "
                "and publish with --report NEW",
            )


def _contradiction(check: Check) -> str:
    """Returns why a check is no PASS by its own figures, "" where it is one."""
    if check.verdict is not Verdict.PASS:
        return f"it is {check.verdict}"
    if check.estimate is None:
        return "it has no figure"
    low, high = check.interval or (check.estimate, check.estimate)
    is_within = high <= check.threshold if check.direction == "max" else low >= check.threshold
    if not is_within:
        return f"{low:.5g} to {high:.5g} is not within {check.threshold:g}"
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
