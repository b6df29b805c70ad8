"""Files of which only the beginning arrived."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import damage
import stages
from camelpress.core.errors import CheckpointProblem
from camelpress.reporting.stage_report import Report
from refusal import refusal, starting

Stage = Callable[[Path], Report]


@pytest.mark.parametrize("kept", [5, 8, 100, 0.5, -1])
def test_a_truncated_file_is_named(
    stage: Stage, base: Path, tmp_path: Path, out: Path, kept: float
) -> None:
    broken = damage.copied(base, tmp_path / "broken")
    file = broken / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content)) if kept == 0.5 else int(kept)])
    with refusal(
        CheckpointProblem,
        starting(f"{file} is not a complete safetensors file ("),
        next_step="download it again",
        out=out,
    ):
        stage(broken)


@pytest.mark.parametrize("kept", [10, 0.5, -1])
def test_a_truncated_pickle_is_named(base: Path, tmp_path: Path, out: Path, kept: float) -> None:
    broken = damage.copied(base, tmp_path / "broken")
    file = broken / "pytorch_model.bin"
    torch.save(load_file(broken / "model.safetensors"), file)
    (broken / "model.safetensors").unlink()
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content)) if kept == 0.5 else int(kept)])
    with refusal(
        CheckpointProblem,
        starting(f"{file} cannot be read as plain weights ("),
        next_step="do not trust this file, or download it again",
        out=out,
    ):
        stages.quantize(broken, out)


@pytest.mark.parametrize("name", ["config.json", damage.INDEX])
def test_truncated_json_is_named(
    stage: Stage, base: Path, tmp_path: Path, out: Path, name: str
) -> None:
    broken = damage.sharded(base, tmp_path / "broken")
    (broken / name).write_bytes((broken / name).read_bytes()[:50])
    with refusal(
        CheckpointProblem,
        starting(f"{broken / name} is not valid JSON ("),
        next_step="download it again",
        out=out,
    ):
        stage(broken)
