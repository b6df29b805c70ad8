"""Inputs on a disk that cannot be written."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import damage
import stages
import weights
from camelpress.core.files.file_hashes import FileHashCache
from tmpfs import mounted


@pytest.fixture
def locked(base: Path, diff: Path, tmp_path: Path) -> Iterator[Path]:
    """Base and diff, and the diff as a pickle, where not even root can write."""
    (tmp_path / "locked").mkdir()
    with mounted(tmp_path / "locked", "size=8m") as folder:
        damage.copied(base, folder / "base")
        damage.copied(diff, folder / "diff")
        old = damage.copied(diff, folder / "old")
        torch.save(load_file(old / "model.safetensors"), old / "pytorch_model.bin")
        (old / "model.safetensors").unlink()
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        yield folder


@pytest.mark.parametrize("name", ["diff", "old"])
def test_nothing_is_written_beside_inputs(locked: Path, tuned: Path, out: Path, name: str) -> None:
    before = FileHashCache({}).tree_digest(locked)
    stages.recover(locked / "base", locked / name, out)
    assert weights.same(weights.read(out), weights.read(tuned))
    assert FileHashCache({}).tree_digest(locked) == before
