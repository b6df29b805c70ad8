"""Rows of a text that cannot be used are left out, and every account of the run says how many."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import stages
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import RecipeProblem
from camelpress.core.progress import use_listener
from camelpress.reporting.rendering.terminal_summary import terminal_rows
from camelpress.reporting.report_classes import read_report
from camelpress.validate.settings import StoreSettings
from camelpress.validate.store import build_store
from camelpress.validate.store.prediction_store import PredictionStore
from notes import Notes
from refusal import refusal

OMISSIONS = {
    "rows": {"output is null": 2, "a turn has the role 'bard'": 1},
    "turns": {"it is the last of an odd number": 1},
    "fields": {"label": 8},
}
LEFT_OUT = (
    "3 of 11 rows (2 because output is null, 1 because a turn has the role 'bard'), "
    "1 turn (1 because it is the last of an odd number)"
)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Seven whole rows with a field that nobody reads, a conversation, and three broken rows."""
    turns = [{"from": "human", "value": "say sea"}, {"from": "gpt", "value": "sea " * 30}]
    content: list[Any] = [
        {"instruction": f"say {number}", "output": "a river " * 20, "label": number}
        for number in range(1, 8)
    ]
    content += [{"instruction": "say sea", "output": None}] * 2
    content += [{"conversations": [*turns, turns[0]], "label": 1}]
    content += [{"conversations": [turns[0], {"from": "bard", "value": "sea"}]}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return path


def test_a_quantization_tells_what_its_calibration_left_out(
    base: Path, rows: Path, prose: Path, out: Path
) -> None:
    notes = Notes()
    with use_listener(notes):
        report = stages.quantize(base, out, rows, prose)
    calibration = report.facts.record["calibration"]
    (file, other) = calibration["files"]
    assert (file["rows"], file["documents"], file["omissions"]) == (11, 8, OMISSIONS)
    assert (other["rows"], other["documents"], other["omissions"]) == (1, 1, {})
    assert (calibration["rows"], calibration["omissions"]) == (12, OMISSIONS)
    assert f"{rows}: left out {LEFT_OUT}; the first is in {rows}:8" in notes.heard
    shown = terminal_rows(read_report(out / "quantize-report.json"))
    assert ("left out", f"rows.jsonl: {LEFT_OUT}") in shown
    assert ("not read", "rows.jsonl: fields label") in shown


def test_a_validation_tells_what_its_texts_left_out(base: Path, rows: Path, out: Path) -> None:
    report = stages.validate(base, base, out, rows)
    (text,) = report.facts.record["texts"]
    assert (text["rows"], text["omissions"]) == (11, OMISSIONS)
    assert ("left out", f"rows.jsonl: {LEFT_OUT}") in terminal_rows(report)
    page = (out / "report.html").read_text(encoding="utf-8").replace("&#39;", "'")
    assert f"Left out of rows.jsonl: {LEFT_OUT}." in page
    assert "Not read of rows.jsonl: fields label." in page
    markdown = (out / "report.md").read_text(encoding="utf-8")
    assert f"Left out of rows.jsonl: {LEFT_OUT}." in markdown


def test_a_store_keeps_what_its_texts_left_out(base: Path, rows: Path, tmp_path: Path) -> None:
    options = {"text": [rows], "sequence_length": 64, "max_tokens": 200}
    store = tmp_path / "store"
    settings = StoreSettings.parse(options | {"top_k": 20, "samples": 5}, source="test")
    report = build_store.build_store(Checkpoint.open(base), store, settings)
    assert ("left out", f"rows.jsonl: {LEFT_OUT}") in terminal_rows(report)
    assert report.facts.record["texts"][0]["omissions"] == OMISSIONS
    (text,) = PredictionStore.open(store).texts
    assert (text.row_count, text.omissions) == (11, OMISSIONS)


def test_conversations_without_an_answer_in_reach_are_counted(
    base: Path, tmp_path: Path, out: Path
) -> None:
    turns = [{"task_prompt": "sea " * long, "task_output": "a river"} for long in (2, 2, 90)]
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in turns), encoding="utf-8")
    notes = Notes()
    with use_listener(notes):
        report = stages.validate(base, base, out, path, assistant_only=True)
    (text,) = report.facts.record["texts"]
    assert text["omissions"] == {"windows": {"no answer lies in it": 1}}
    assert f"{path}: left out 1 window (1 because no answer lies in it)" in notes.heard


def test_known_completions_are_scored_all_or_none(
    base: Path, diff: Path, rows: Path, out: Path
) -> None:
    with refusal(
        RecipeProblem,
        f"{rows}:8 cannot be scored because output is null",
        next_step="mend or remove that row",
        exit_code=2,
        out=out,
    ):
        stages.recover(base, diff, out, verify=rows)
