"""Inputs that change while they are read."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import damage
from camelpress.convert.recover.run import recover
from camelpress.convert.settings import RecoverSettings
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import CheckpointProblem
from camelpress.core.output.journal import Journal
from refusal import refusal


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def replace(file: Path) -> None:
    other = file.with_suffix(".new")
    other.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    other.rename(file)


@pytest.mark.parametrize("shorten", [cut, replace])
@pytest.mark.parametrize("side", ["base", "diff"])
@pytest.mark.parametrize("moment", ["before the first tensor", "after the first tensor"])
def test_a_file_that_became_shorter_is_named(
    base: Path, diff: Path, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch,
    shorten: Callable[[Path], None], side: str, moment: str,
) -> None:  # fmt: skip
    inputs = {"base": base, "diff": diff}
    inputs[side] = broken = damage.copied(inputs[side], tmp_path / "broken")
    left, right = (Checkpoint.open(folder) for folder in inputs.values())
    file = broken / "model.safetensors"
    if moment.startswith("before"):
        shorten(file)
    else:
        add, todo = Journal.add, [shorten]

        def then_shorten(*told: Any) -> None:
            add(*told)
            while todo:
                todo.pop()(file)

        monkeypatch.setattr(Journal, "add", then_shorten)
    with refusal(
        CheckpointProblem,
        re.compile(
            rf"{re.escape(str(file))} (ends before all of its tensors do"
            r"|is not a complete safetensors file \(.*\))"
        ),
        next_step="download it again",
        out=out,
    ):
        recover(left, right, out, RecoverSettings())
