"""Disks without space for the output: a real one of a few pages."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest

import stages
from camelpress.convert.recover.diff_rules import TensorPlan
from camelpress.convert.recover.tensor_stream import TensorStream
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import OutputProblem
from camelpress.core.output.journal import read_journal
from refusal import refusal
from tmpfs import mounted

SIZE = 131_072  # bytes; the pico model has 193,152 in 16 bits and 109,632 in 4
COUNT = r"[\d,]+"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    (tmp_path / "disk").mkdir()
    with mounted(tmp_path / "disk", f"size={SIZE}") as folder:
        yield folder


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Space that seems to be there, and is gone when it is needed."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**12))


def enlarge(disk: Path) -> None:
    """Free some space."""
    subprocess.run(["mount", "-o", "remount,size=2m", str(disk)], check=True)


def unless(done: Collection[str]) -> Callable[..., Any]:
    """Returns the work on a tensor, which none that is finished may need again."""
    work = TensorStream._write_tensor

    def written(stream: TensorStream, plan: TensorPlan, stop: Event) -> Any:
        assert plan.name not in done
        return work(stream, plan, stop)

    return written


def test_recover_needs_space_before_it_writes(base: Path, diff: Path, disk: Path) -> None:
    with refusal(
        OutputProblem,
        re.compile(f"{disk} has {COUNT} bytes free, the output needs {COUNT}"),
        next_step="free some space or name another output",
        out=disk / "out",
    ):
        stages.recover(base, diff, disk / "out")
    assert list(disk.iterdir()) == []


def test_quantize_needs_space_before_it_writes(base: Path, disk: Path) -> None:
    (disk / "other").write_bytes(bytes(SIZE // 2))
    with refusal(
        OutputProblem,
        re.compile(f"{disk} has {COUNT} bytes free, the output needs {COUNT}"),
        next_step="free some space or name another output",
        out=disk / "out",
    ):
        stages.quantize(base, disk / "out", method="rtn")


@pytest.mark.usefixtures("unmeasured")
def test_space_that_vanishes_costs_recover_nothing_that_is_finished(
    base: Path, diff: Path, disk: Path
) -> None:
    out = disk / "out"
    with refusal(
        OutputProblem,
        f"{out} cannot be written: No space left on device",
        next_step="free some space, or name a place that can be written",
        out=None,
    ):
        stages.recover(base, diff, out)
    assert [path.name for path in disk.iterdir()] == ["out.partial"]
    done = read_journal(disk / "out.partial").keys()
    enlarge(disk)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TensorStream, "_write_tensor", unless(done))
        stages.recover(base, diff, out)
    assert [path.name for path in disk.iterdir()] == ["out"]
    assert Checkpoint.open(out).tensors


@pytest.mark.usefixtures("unmeasured")
def test_space_that_vanishes_costs_make_diff_nothing_that_is_finished(
    base: Path, tuned: Path, disk: Path
) -> None:
    out = disk / "out"
    with refusal(
        OutputProblem,
        f"{out} cannot be written: No space left on device",
        next_step="free some space, or name a place that can be written",
        out=None,
    ):
        stages.make_diff(base, tuned, out)
    assert [path.name for path in disk.iterdir()] == ["out.partial"]
    done = read_journal(disk / "out.partial").keys()
    enlarge(disk)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TensorStream, "_write_tensor", unless(done))
        stages.make_diff(base, tuned, out)
    assert [path.name for path in disk.iterdir()] == ["out"]
    assert Checkpoint.open(out).tensors


@pytest.mark.usefixtures("unmeasured")
def test_space_that_vanishes_ends_quantize_without_remains(base: Path, disk: Path) -> None:
    (disk / "other").write_bytes(bytes(SIZE // 2))
    out = disk / "out"
    with refusal(
        OutputProblem,
        f"{out} cannot be written: No space left on device",
        next_step="free some space, or name a place that can be written",
        out=out,
    ):
        stages.quantize(base, out, method="rtn")
    assert [path.name for path in disk.iterdir()] == ["other"]


def test_no_space_for_a_report_ends_validate_without_remains(
    base: Path, chat: Path, disk: Path
) -> None:
    (disk / "other").write_bytes(bytes(SIZE - 8192))
    out = disk / "out"
    with refusal(
        OutputProblem,
        f"{out} cannot be written: No space left on device",
        next_step="free some space, or name a place that can be written",
        out=out,
    ):
        stages.validate(base, base, out, chat)
    assert [path.name for path in disk.iterdir()] == ["other"]


@pytest.mark.usefixtures("unmeasured")
def test_the_old_output_outlives_a_full_disk(base: Path, diff: Path, disk: Path) -> None:
    out = disk / "out"
    out.mkdir()
    (out / "recover-report.json").write_text("kept")
    with refusal(
        OutputProblem,
        f"{out} cannot be written: No space left on device",
        next_step="free some space, or name a place that can be written",
        out=None,
    ):
        stages.recover(base, diff, out, force=True)
    assert [path.name for path in out.iterdir()] == ["recover-report.json"]
    enlarge(disk)
    stages.recover(base, diff, out, force=True)
    assert [path.name for path in disk.iterdir()] == ["out"]
    assert (out / "recover-report.json").read_text() != "kept"
