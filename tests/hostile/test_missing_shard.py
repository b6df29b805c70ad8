"""A shard that the index lists and the folder lacks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import damage
from camelpress.core.errors import CheckpointProblem
from camelpress.reporting.stage_report import Report
from refusal import refusal

Stage = Callable[[Path], Report]


def test_a_missing_shard_is_named(stage: Stage, base: Path, tmp_path: Path, out: Path) -> None:
    broken = damage.sharded(base, tmp_path / "broken")
    shard = broken / "model-2.safetensors"
    shard.unlink()
    with refusal(
        CheckpointProblem,
        f"{shard} is missing, {damage.INDEX} lists it",
        next_step="download that file",
        out=out,
    ):
        stage(broken)


def test_a_link_to_nothing_is_a_missing_shard(
    stage: Stage, base: Path, tmp_path: Path, out: Path
) -> None:
    broken = damage.sharded(base, tmp_path / "broken")
    shard = broken / "model-2.safetensors"
    shard.unlink()
    shard.symlink_to("nowhere")
    with refusal(
        CheckpointProblem,
        f"{shard} is missing, {damage.INDEX} lists it",
        next_step="download that file",
        out=out,
    ):
        stage(broken)
