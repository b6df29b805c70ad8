"""Calibration and evaluation texts with nothing in them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import pytest

import stages
from camelpress.core.errors import RecipeProblem
from refusal import refusal

# name, content, what the message says after the path ({} is the path), next step
MEND = "mend that row, or give another file"
NOTHING = [
    ("empty.txt", "", "is empty", "give a file with text"),
    ("blank.txt", " \n\t\n", "holds no text", "give a file that does"),
    ("empty.jsonl", "", "is empty", "give a file with text"),
    ("empty.json", "[]", "holds no text", "give a file that does"),
    (
        "dropped.jsonl",
        '{"conversations": [{"from": "system", "value": "Hello"}]}\n',
        "has no row that can be used: {}:1 is left out because a turn has the role 'system', and "
        "training left out such conversations",
        MEND,
    ),
    (
        "without-turns.jsonl",
        '{"messages": []}\n',
        "has no row that can be used: {}:1 is left out because messages is empty",
        MEND,
    ),
    (
        "blank.jsonl",
        '{"text": "  "}\n',
        "has no row that can be used: {}:1 is left out because text is blank",
        MEND,
    ),
]


class Nothing(NamedTuple):
    """A file without text, and what is said of it."""

    path: Path
    what: str
    next_step: str


@pytest.fixture(params=NOTHING, ids=lambda each: each[0])
def nothing(request: pytest.FixtureRequest, tmp_path: Path) -> Nothing:
    """A file without text."""
    name, content, what, next_step = request.param
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    return Nothing(path, f"{path} {what.format(path)}", next_step)


def refused(nothing: Nothing, out: Path) -> AbstractContextManager[None]:
    return refusal(RecipeProblem, nothing.what, next_step=nothing.next_step, exit_code=2, out=out)


def test_a_file_without_text_does_not_calibrate(base: Path, out: Path, nothing: Nothing) -> None:
    with refused(nothing, out):
        stages.quantize(base, out, nothing.path)


def test_one_file_without_text_among_others_is_named(
    base: Path, out: Path, chat: Path, nothing: Nothing
) -> None:
    with refused(nothing, out):
        stages.quantize(base, out, chat, nothing.path)


def test_a_file_without_text_is_not_scored(base: Path, out: Path, nothing: Nothing) -> None:
    with refused(nothing, out):
        stages.validate(base, base, out, nothing.path)


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
        f"{tmp_path / 'no.jsonl'} does not exist",
        next_step="check its name",
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
