"""An index and shards that tell different stories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import damage
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import CheckpointProblem, UnknownTensor
from camelpress.core.progress import use_listener
from camelpress.reporting.stage_report import Report
from notes import Notes
from refusal import refusal

Stage = Callable[[Path], Report]


def test_a_tensor_that_its_shard_lacks_is_named(
    stage: Stage, base: Path, tmp_path: Path, out: Path
) -> None:
    broken = damage.sharded(base, tmp_path / "broken")
    damage.move(broken, **{"model.extra.weight": "model-2.safetensors"})
    with refusal(
        UnknownTensor,
        f"{broken / 'model-2.safetensors'} lacks 'model.extra.weight', which the index lists there",
        next_step="download that file again",
        out=out,
    ):
        stage(broken)


def test_a_tensor_in_another_shard_than_listed_is_named(
    stage: Stage, base: Path, tmp_path: Path, out: Path
) -> None:
    broken = damage.sharded(base, tmp_path / "broken")
    damage.move(broken, **{"model.norm.weight": "model-1.safetensors"})
    with refusal(
        CheckpointProblem,
        f"{broken / 'model-2.safetensors'} holds 'model.norm.weight', which the index places in "
        "model-1.safetensors",
        next_step="download the checkpoint again, index included",
        out=out,
    ):
        stage(broken)


def test_an_index_left_over_from_another_model_is_noted_and_not_used(
    base: Path, tmp_path: Path
) -> None:
    broken = damage.sharded(base, tmp_path / "broken")
    single = broken / "model.safetensors"
    single.write_bytes((base / "model.safetensors").read_bytes())
    for shard in broken.glob("model-*.safetensors"):
        shard.unlink()
    notes = Notes()
    with use_listener(notes):
        opened = Checkpoint.open(broken)
    assert {info.shard for info in opened.tensors.values()} == {single.name}
    assert opened.tensors.keys() == Checkpoint.open(base).tensors.keys()
    index = broken / damage.INDEX
    assert notes.heard == [f"{index} lists files that are not there: it is left over and not used"]


def test_an_index_with_one_of_its_shards_asks_for_the_other_ones(
    stage: Stage, base: Path, tmp_path: Path, out: Path
) -> None:
    broken = damage.sharded(base, tmp_path / "broken")
    single = broken / "model.safetensors"
    single.write_bytes((base / "model.safetensors").read_bytes())
    (broken / "model-1.safetensors").unlink()
    with refusal(
        CheckpointProblem,
        f"{broken / 'model-1.safetensors'} is missing, {damage.INDEX} lists it",
        next_step="download that file",
        out=out,
    ):
        stage(broken)
