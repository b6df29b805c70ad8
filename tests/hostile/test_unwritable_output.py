"""Outputs that cannot be made."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import stages
from camelpress.core.errors import OutputExists, OutputProblem
from camelpress.core.files.file_hashes import FileHashCache
from refusal import refusal
from tmpfs import mounted

ELSEWHERE = "free some space, or name a place that can be written"
Run = Callable[[Path], object]


@pytest.fixture(params=["recover", "make-diff", "quantize", "validate"])
def run(request: pytest.FixtureRequest, base: Path, diff: Path, tuned: Path, chat: Path) -> Run:
    """A stage with good inputs, that is called with its output."""
    run: Run = {
        "recover": lambda out: stages.recover(base, diff, out),
        "make-diff": lambda out: stages.make_diff(base, tuned, out),
        "quantize": lambda out: stages.quantize(base, out, method="rtn"),
        "validate": lambda out: stages.validate(base, base, out, chat),
    }[request.param]
    return run


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """A folder in which nothing can be written, not even by root."""
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    if os.geteuid():
        yield folder
    else:
        with mounted(folder, "ro,size=64k"):
            yield folder


def test_a_read_only_parent_is_told(run: Run, locked: Path) -> None:
    out = locked / "out"
    reason = "Permission denied" if os.geteuid() else "Read-only file system"
    with refusal(
        OutputProblem,
        f"{out} cannot be written: {reason} ({out}.partial)",
        next_step=ELSEWHERE,
        out=out,
    ):
        run(out)


@pytest.mark.parametrize("below", ["out", "deep/down/out"])
def test_a_file_in_the_way_of_the_parent_is_told(run: Run, tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("kept")
    out = tmp_path / "file" / below
    with refusal(
        OutputProblem,
        f"{out} cannot be written: Not a directory ({out}.partial)",
        next_step=ELSEWHERE,
        out=out,
    ):
        run(out)
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_there_is_left_alone(run: Run, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
    (out if kind == "file" else out / "mine.txt").write_text("kept")
    before = FileHashCache({}).tree_digest(tmp_path)
    with refusal(
        OutputExists,
        f"{out} exists",
        next_step="name another output, or give --force to replace it",
        out=None,
    ):
        run(out)
    assert FileHashCache({}).tree_digest(tmp_path) == before
