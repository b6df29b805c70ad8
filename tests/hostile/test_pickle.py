"""Pickled weights that would run a command when they are loaded."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import damage
import stages
from camelpress.core.errors import CheckpointProblem
from camelpress.reporting.stage_report import Report
from refusal import refusal, starting

Stage = Callable[[Path], Report]


class Command:
    """Runs a command while it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (self.command,))


class Code:
    """Runs Python while it is unpickled."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return (eval, (self.code,))


@pytest.fixture(params=["command", "code"])
def harm(request: pytest.FixtureRequest, tmp_path: Path) -> object:
    """An object that leaves a file called `it ran` behind."""
    proof = tmp_path / "it ran"
    if request.param == "command":
        return Command(f"touch '{proof}'")
    return Code(f"__import__('pathlib').Path({str(proof)!r}).touch()")


def bare(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


def zipped(content: object, path: Path) -> None:
    torch.save(content, path)


def legacy(content: object, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("save", [bare, zipped, legacy])
@pytest.mark.parametrize("hidden", [False, True])
def test_a_pickle_runs_nothing(
    stage: Stage, base: Path, tmp_path: Path, out: Path, harm: object,
    save: Callable[[object, Path], None], hidden: bool,
) -> None:  # fmt: skip
    broken = damage.copied(base, tmp_path / "broken")
    (broken / "model.safetensors").unlink()
    file = broken / "pytorch_model.bin"
    save({"model.norm.weight": torch.ones(64), "x": harm} if hidden else harm, file)
    expected = (
        (
            f"{file} is not laid out as torch does it now: it is from before torch 1.6",
            "load it by torch.load(FILE, weights_only=True) and save that by torch.save",
        )
        if save is legacy  # which is not even unpickled, and torch refuses it, too
        else (
            starting(f"{file} cannot be read as plain weights ("),
            "do not trust this file, or download it again",
        )
    )
    with refusal(CheckpointProblem, expected[0], next_step=expected[1], out=out):
        stage(broken)
    assert not (tmp_path / "it ran").exists()


def test_the_harm_is_real(tmp_path: Path, harm: object) -> None:
    bare(harm, tmp_path / "x.bin")
    pickle.loads((tmp_path / "x.bin").read_bytes())  # noqa: S301 - what is never done elsewhere
    assert (tmp_path / "it ran").exists()


def test_a_pickle_beside_safetensors_is_not_even_opened(
    base: Path, chat: Path, tmp_path: Path, out: Path, harm: object
) -> None:
    both = damage.copied(stages.widened(base), tmp_path / "both")
    zipped(harm, both / "pytorch_model.bin")
    stages.validate(base, both, out, chat)
    assert not (tmp_path / "it ran").exists()
