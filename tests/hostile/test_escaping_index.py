"""An index that names files outside its folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import damage
import stages
from camelpress.core.errors import UnsafeShard
from camelpress.reporting.stage_report import Report
from refusal import refusal

Stage = Callable[[Path], Report]


def check(stage: Stage, broken: Path, out: Path, shard: object) -> None:
    with refusal(
        UnsafeShard,
        f"{broken / damage.INDEX} names the shard {shard!r}, which is not a plain file name",
        next_step="do not use this checkpoint",
        out=out,
    ):
        stage(broken)


@pytest.fixture
def broken(base: Path, tmp_path: Path) -> Path:
    """A checkpoint whose second shard also lies beside, below and elsewhere."""
    broken = damage.sharded(base, tmp_path / "broken")
    (broken / "below").mkdir()
    for place in (tmp_path, broken / "below"):
        (place / "x.safetensors").write_bytes((broken / "model-2.safetensors").read_bytes())
    return broken


@pytest.mark.parametrize("shard", ["../x.safetensors", "below/x.safetensors", "./x.safetensors"])
def test_a_path_is_refused(stage: Stage, broken: Path, out: Path, shard: str) -> None:
    damage.move(broken, **{"model.norm.weight": shard})
    check(stage, broken, out, shard)


def test_an_absolute_path_is_refused(stage: Stage, broken: Path, tmp_path: Path, out: Path) -> None:
    damage.move(broken, **{"model.norm.weight": str(tmp_path / "x.safetensors")})
    check(stage, broken, out, str(tmp_path / "x.safetensors"))


@pytest.mark.parametrize(
    "shard",
    [
        "",
        ".",
        "..",
        "/dev/zero",
        "..\\x.safetensors",
        "C:\\x.safetensors",
        ".hidden.safetensors",
        "x.safetensors\n",
        "x.safetensors\0",
        "config.json",
        "weights.pt",
        7,
        None,
        ["model-2.safetensors"],
        {},
    ],
)
def test_what_is_no_name_of_a_weight_file_is_refused(
    broken: Path, base: Path, out: Path, shard: Any
) -> None:
    damage.move(broken, **{"model.norm.weight": shard})
    check(lambda folder: stages.quantize(folder, out), broken, out, shard)
