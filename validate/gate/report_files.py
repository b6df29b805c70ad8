"""What a validation leaves: one report in four forms, and a report judged again."""

from __future__ import annotations

from pathlib import Path

from camelpress.core.errors import RecipeProblem
from camelpress.core.output.staged_output import keep_apart, output_files, staged
from camelpress.reporting.facts import validation_facts
from camelpress.reporting.rendering import html_page
from camelpress.reporting.rendering.junit_xml import junit
from camelpress.reporting.stage_report import Report, Verdict
from camelpress.validate.gate.gate_judge import judge
from camelpress.validate.settings import Gate, Reports

REPORT = "report.json"
FORMS = (REPORT, "report.md", "report.html", "junit.xml")


def write(report: Report, folder: Path, settings: Reports) -> None:
    """report.json, report.md, report.html and junit.xml."""
    forms = {
        "report.md": html_page.markdown(report),
        "report.html": html_page.html(report),
        "junit.xml": junit(report, inconclusive=settings.junit_inconclusive),
    }
    for name, text in forms.items():
        (folder / name).write_text(text, encoding="utf-8")
    files = output_files(folder, REPORT)
    report.model_copy(update={"files": files}).write(folder / REPORT)


def save(report: Report, out: Path, settings: Reports, *, source: Path, force: bool) -> None:
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
    keep_apart(out, source)
    with staged(out, force=force, writes=FORMS) as folder:
        write(report, folder, settings)


def judge_again(path: Path, gate: Gate | None) -> Report:
    """A report held against a gate once more; its models are not needed.

    Args:
        path: report.json, or the folder that validate wrote.
        gate: None for the one that the report was judged by.
    Raises:
        CheckpointProblem: no validation report, or a damaged one.
        RecipeProblem: the gate holds no check.
    """
    report = validation_facts.read(path)
    if gate is None:
        kept = report.settings.get("gate")
        if not isinstance(kept, dict):
            raise RecipeProblem(f"{path} names no gate", next_step="give --gate FILE")
        gate = Gate.parse(kept, source=f"the gate in {path}")
    checks = judge(report.facts, gate)
    told = {
        "settings": report.settings | {"gate": gate.model_dump(mode="json")},
        "checks": checks,
        "verdict": Verdict.worst([check.verdict for check in checks]),
    }
    return report.model_copy(update=told)
