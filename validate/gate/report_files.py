"""What a validation leaves: one report in four forms, and a report judged again."""

from __future__ import annotations

from pathlib import Path

from camelpress.core.errors import RecipeProblem
from camelpress.core.output.staged_output import output_files, require_separate_output, staged
from camelpress.reporting.facts import validation_facts
from camelpress.reporting.rendering import html_page
from camelpress.reporting.rendering.junit_xml import render_junit
from camelpress.reporting.stage_report import Report, Verdict
from camelpress.validate.gate.gate_judge import judge_facts
from camelpress.validate.settings import Gate, ReportSettings

REPORT_FILE = "report.json"
REPORT_FILES = (REPORT_FILE, "report.md", "report.html", "junit.xml")


def write_report_files(report: Report, folder: Path, settings: ReportSettings) -> None:
    """report.json, report.md, report.html and junit.xml."""
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
    report: Report, out: Path, settings: ReportSettings, *, source: Path, force: bool
) -> None:
    """A report in all its forms as a folder of its own.

    Args:
        report: of a validation.
        out: the folder.
        settings: how the verdict is told to other programs.
        source: what was judged; it is not replaced.
        force: replace an earlier output.
    Raises:
        RecipeProblem: `out` would replace `source`.
        OutputProblem: `out` is there, or cannot be written.
    """
    require_separate_output(out, source)
    with staged(out, force=force, writes=REPORT_FILES) as folder:
        write_report_files(report, folder, settings)


def regate_report(path: Path, gate: Gate | None) -> Report:
    """A report held against a gate once more; its models are not needed.

    Args:
        path: report.json, or the folder that validate wrote.
        gate: None for the one that the report was judged by.
    Raises:
        CheckpointProblem: no validation report, or a damaged one.
        RecipeProblem: the gate holds no check.
    """
    report = validation_facts.read_validation(path)
    if gate is None:
        kept = report.settings.get("gate")
        if not isinstance(kept, dict):
            raise RecipeProblem(f"{path} names no gate", next_step="give --gate FILE")
        gate = Gate.parse(kept, source=f"the gate in {path}")
    checks = judge_facts(report.facts, gate)
    told = {
        "settings": report.settings | {"gate": gate.model_dump(mode="json")},
        "checks": checks,
        "verdict": Verdict.combine([check.verdict for check in checks]),
    }
    return report.model_copy(update=told)
