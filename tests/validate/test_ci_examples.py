"""The examples for CI systems: what they leave behind, and the code they end with."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest
import yaml

import stages

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docs" / "ci" / "gate.sh"
WORKFLOW = ROOT / "docs" / "ci" / "github.yml"
LOOSE = "kl_mean: {max: 2.0}\ntop1_agreement: {min: 0.5}\nperplexity_ratio: "
PASSES, FAILS = LOOSE + "{max: 2.0}\n", LOOSE + "{max: 0.6}\n"
UNKNOWN = "kl_meen: {max: 2.0}\n"


class Ended(NamedTuple):
    code: int
    err: str
    summary: str


def gate(folder: Path, *arguments: object, **environment: str) -> Ended:
    """Run the script as a CI system does, with this interpreter's camelpress on the path."""
    tools = folder / "bin"
    tools.mkdir()
    command = tools / "camelpress"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m camelpress "$@"\n')
    command.chmod(0o755)
    summary = folder / "summary.md"
    ended = subprocess.run(
        [str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ
        | {"PATH": f"{tools}:{os.environ['PATH']}", "GITHUB_STEP_SUMMARY": str(summary)}
        | environment,
    )
    told = summary.read_text(encoding="utf-8") if summary.exists() else ""
    return Ended(ended.returncode, ended.stderr, told)


def thresholds(folder: Path, text: str) -> Path:
    path = folder / "gate.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# fmt: off
@pytest.mark.parametrize(
    ("text", "code", "first", "tag"),
    [
        (PASSES, 0, "## ✓ PASS: base against base",  "system-out"),
        (FAILS,  1, "## ✕ FAIL: base against base",  "failure"),
    ],
)
# fmt: on
def test_a_report_is_judged_again(
    validation: Path, tmp_path: Path, text: str, code: int, first: str, tag: str
) -> None:
    out = tmp_path / "gated"
    ended = gate(tmp_path, validation, thresholds(tmp_path, text), out)
    assert ended.code == code, ended.err
    assert ended.summary.splitlines()[0] == first
    assert ended.summary == (out / "report.md").read_text(encoding="utf-8")
    assert ElementTree.parse(out / "junit.xml").find(f".//{tag}") is not None


def test_models_are_validated_and_what_is_undecided_ends_with_4(
    base: Path, prose: Path, tmp_path: Path
) -> None:
    text = tmp_path / "one-window.txt"
    text.write_text(prose.read_text(encoding="utf-8")[:40], encoding="utf-8")
    out = tmp_path / "out"
    ended = gate(
        tmp_path,
        base,
        stages.widened(base),
        text,
        thresholds(tmp_path, PASSES),
        out,
        INCONCLUSIVE="skipped",
    )
    assert ended.code == 4, ended.err
    assert ended.summary.startswith("## ? INCONCLUSIVE")
    assert ElementTree.parse(out / "junit.xml").find(".//skipped[@type='inconclusive']") is not None


@pytest.mark.parametrize(("text", "code"), [(UNKNOWN, 2), (PASSES, 3)])
def test_what_cannot_be_judged_is_said_in_the_summary(
    validation: Path, tmp_path: Path, text: str, code: int
) -> None:
    report = validation if code == 2 else tmp_path / "nowhere"
    ended = gate(tmp_path, report, thresholds(tmp_path, text), tmp_path / "out")
    assert ended.code == code
    assert ended.summary == f"## ! ERROR: nothing was judged (exit code {code}), see the log\n"
    assert not (tmp_path / "out").exists()
    assert ("did you mean kl_mean?" if code == 2 else "cannot be read") in ended.err


def test_an_old_report_does_not_pass_for_a_new_one(validation: Path, tmp_path: Path) -> None:
    ended = gate(tmp_path, validation, thresholds(tmp_path, PASSES), validation)
    assert (ended.code, ended.summary) == (2, "")
    assert "must not pass for a new one" in ended.err


def test_the_script_says_how_it_is_used(tmp_path: Path) -> None:
    ended = gate(tmp_path, "one")
    assert ended.code == 2
    assert ended.err.startswith("usage: ")


def test_the_workflow_runs_the_script_and_shows_what_it_leaves() -> None:
    text = WORKFLOW.read_text(encoding="utf-8")
    (job,) = yaml.safe_load(text)["jobs"].values()
    runs = [step["run"] for step in job["steps"] if "run" in step]
    assert sum("docs/ci/gate.sh" in run for run in runs) == 1
    assert all("${{" not in run and "|" not in run for run in runs)
    script = next(run for run in runs if "gate.sh" in run).split()
    assert len(script) == 6  # with its five arguments
    after = [step for step in job["steps"] if step.get("if") == "always()"]
    assert after == job["steps"][-2:]
    assert f"{script[-1]}/junit.xml" == after[-1]["with"]["report_paths"]
    assert re.search(r"^permissions:", text, re.MULTILINE)
