"""Writes the files of a validation report, and judges a report again."""

from __future__ import annotations

from pathlib import Path

from camelpress.core.errors import RecipeProblem
from camelpress.core.output.staged_output import output_files, require_separate_output, staged
from camelpress.reporting import validation_report
from camelpress.reporting.rendering import html_page
from camelpress.reporting.rendering.junit_xml import render_junit
from camelpress.reporting.report_classes import ValidationReport
from camelpress.reporting.verdict import Verdict
from camelpress.validate.gate.gate_judge import judge_facts
from camelpress.validate.settings import Gate, ReportSettings

REPORT_FILE = "report.json"
REPORT_FILES = (REPORT_FILE, "report.md", "report.html", "junit.xml")


def write_report_files(report: ValidationReport, folder: Path, settings: ReportSettings) -> None:
    """Writes report.json, report.md, report.html and junit.xml."""
    forms = {
        "report.md": html_page.render_markdown(report),
        "report.html": html_page.render_html(report),
        "junit.xml": render_junit(report, inconclusive=settings.junit_inconclusive),
    }
    for name, text in forms.items():
        (folder / name).write_text(text, encoding="utf-8")
    files = output_files(folder, REPORT_FILE)
    report.model_copy(update={"files": files}).write(folder / REPORT_FILE)


def save_report(
    report: ValidationReport, out: Path, settings: ReportSettings, *, source: Path, force: bool
) -> None:
    """Writes all files of a report to an output folder.

    Args:
        report: report of a validation.
        out: output folder.
        settings: settings of the report files.
        source: path of the judged report; it is never replaced.
        force: replace an earlier output.
    Raises:
        RecipeProblem: `out` would replace `source`.
        OutputProblem: `out` exists, or cannot be written.
    """
    require_separate_output(out, source)
    with staged(out, force=force, writes=REPORT_FILES) as folder:
        write_report_files(report, folder, settings)


def regate_report(path: Path, gate: Gate | None) -> ValidationReport:
    """Judges a report again; its models are not needed.

    Args:
        path: report.json, or the output folder of a validation.
        gate: the gate; None for the gate in the report.
    Returns:
        the report with the new checks and verdict.
    Raises:
        CheckpointProblem: there is no validation report, or it is damaged.
        RecipeProblem: the gate has no check.
    """
    report = validation_report.read_validation(path)
    if gate is None:
        report_gate = report.settings.get("gate")
        if not isinstance(report_gate, dict):
            raise RecipeProblem(f"{path} has no gate", next_step="give --gate FILE")
        gate = Gate.parse(report_gate, source=f"the gate in {path}")
    checks = judge_facts(report.facts, gate)
    changes = {
        "settings": report.settings | {"gate": gate.model_dump(mode="json")},
        "checks": checks,
        "verdict": Verdict.combine([check.verdict for check in checks]),
    }
    return report.model_copy(update=changes)
