"""Calibration and evaluation texts with nothing in them."""

from __future__ import annotations

from pathlib import Path

import pytest

import stages
from camelpress.core.errors import RecipeProblem
from refusal import refusal

NOTHING = {
    "empty.txt": "",
    "blank.txt": " \n\t\n",
    "empty.jsonl": "",
    "empty.json": "[]",
    "dropped.jsonl": '{"conversations": [{"from": "system", "value": "Hello"}]}\n',
    "without-turns.jsonl": '{"messages": []}\n',
    "blank.jsonl": '{"text": "  "}\n',
}


@pytest.fixture(params=NOTHING)
def nothing(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file without text."""
    path: Path = tmp_path / request.param
    path.write_text(NOTHING[request.param], encoding="utf-8")
    return path


def test_a_file_without_text_does_not_calibrate(base: Path, out: Path, nothing: Path) -> None:
    with refusal(
        RecipeProblem,
        f"{nothing} holds no text",
        next_step="give a file that does",
        exit_code=2,
        out=out,
    ):
        stages.quantize(base, out, nothing)


def test_one_file_without_text_among_others_is_named(
    base: Path, out: Path, chat: Path, nothing: Path
) -> None:
    with refusal(
        RecipeProblem,
        f"{nothing} holds no text",
        next_step="give a file that does",
        exit_code=2,
        out=out,
    ):
        stages.quantize(base, out, chat, nothing)


def test_a_file_without_text_is_not_scored(base: Path, out: Path, nothing: Path) -> None:
    with refusal(
        RecipeProblem,
        f"{nothing} holds no text",
        next_step="give a file that does",
        exit_code=2,
        out=out,
    ):
        stages.validate(base, base, out, nothing)


def test_no_calibration_file_is_refused(base: Path, out: Path) -> None:
    with refusal(
        RecipeProblem,
        "there is no calibration text",
        next_step="give --calibration FILE, or --method rtn",
        exit_code=2,
        out=out,
    ):
        stages.quantize(base, out)


def test_a_calibration_file_that_is_not_there_is_named(
    base: Path, tmp_path: Path, out: Path
) -> None:
    with refusal(
        RecipeProblem,
        f"{tmp_path / 'no.jsonl'} cannot be read as UTF-8 text (FileNotFoundError)",
        next_step="give a text, JSON or JSON lines file",
        exit_code=2,
        out=out,
    ):
        stages.quantize(base, out, tmp_path / "no.jsonl")


def test_no_text_to_score_is_refused(base: Path, out: Path) -> None:
    with refusal(
        RecipeProblem,
        "there is no text to score",
        next_step="give --text FILE",
        exit_code=2,
        out=out,
    ):
        stages.validate(base, base, out)
