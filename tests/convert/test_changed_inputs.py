"""Inputs that change or cannot be read while a diff is added, and tensors without values."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import stages
import weights
from camelpress.convert.recover import input_record
from camelpress.convert.recover import run as stage
from camelpress.convert.recover.arithmetic import add_diff
from camelpress.core.errors import CheckpointProblem, Interruption
from refusal import refusal


@pytest.fixture
def diff(base: Path, tuned: Path, tmp_path: Path) -> Path:
    """tuned - base, with a licence."""
    stages.make_diff(base, tuned, tmp_path / "diff")
    (tmp_path / "diff" / "LICENSE.txt").write_text("as you like")
    return tmp_path / "diff"


def test_what_an_earlier_run_copied_does_not_outlive_its_source(
    base: Path, diff: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise Interruption("stopped", next_step="run again")

    with monkeypatch.context() as patched:
        patched.setattr(input_record, "input_digests", stop)
        with pytest.raises(Interruption):
            stages.recover(base, diff, tmp_path / "out")
    assert (tmp_path / "out.partial" / "LICENSE.txt").is_file()
    (diff / "LICENSE.txt").unlink()
    stages.recover(base, diff, tmp_path / "out")
    assert not (tmp_path / "out" / "LICENSE.txt").exists()


def test_an_input_that_was_written_to_meanwhile_is_named(
    base: Path, diff: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def touching(*arguments: Any, **options: Any) -> Iterator[torch.Tensor]:
        os.utime(diff / "model.safetensors", (0, 0))
        return add_diff(*arguments, **options)

    monkeypatch.setattr(stage, "add_diff", touching)
    with refusal(
        CheckpointProblem,
        f"{diff / 'model.safetensors'} changed while it was read",
        next_step="let nothing write there, and run the same command again",
        out=tmp_path / "out",
    ):
        stages.recover(base, diff, tmp_path / "out")


def test_a_disk_that_fails_is_named(
    base: Path, diff: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, failing = Path.open, diff / "model.safetensors"

    def opened(path: Path, mode: str = "r", buffering: int = -1, **options: Any) -> Any:
        if path == failing and buffering == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return whole(path, mode, buffering, **options)

    monkeypatch.setattr(Path, "open", opened)
    with refusal(
        CheckpointProblem,
        f"{failing} cannot be read (Input/output error)",
        next_step="check that its disk is connected and works, then run the same command again",
        out=tmp_path / "out",
    ):
        stages.recover(base, diff, tmp_path / "out")


@pytest.mark.parametrize("shape", [(0,), (5, 0), (0, 4)])
def test_a_tensor_without_values_comes_back(
    base: Path, tuned: Path, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    def with_empty(tensors: weights.Tensors) -> weights.Tensors:
        dtype = next(iter(tensors.values())).dtype
        return tensors | {"model.empty": torch.zeros(shape, dtype=dtype)}

    base = weights.changed(base, tmp_path / "base", with_empty)
    tuned = weights.changed(tuned, tmp_path / "tuned", with_empty)
    stages.make_diff(base, tuned, tmp_path / "diff")
    stages.recover(base, tmp_path / "diff", tmp_path / "out", check="full")
    assert weights.same(weights.read(tmp_path / "out"), weights.read(tuned))
