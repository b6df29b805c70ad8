"""Files that say one thing twice; most readers keep the last and say nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import damage
from camelpress.core.errors import CheckpointProblem
from refusal import starting

Refused = Callable[..., None]

NORM = "model.norm.weight"


@pytest.fixture(params=["base", "diff"])
def side(request: pytest.FixtureRequest) -> str:
    """Which of the inputs it is."""
    side: str = request.param
    return side


def test_a_key_of_the_config(
    base: Path, diff: Path, tmp_path: Path, refused: Refused, side: str
) -> None:
    inputs = {"base": base, "diff": diff}
    inputs[side] = broken = damage.copied(inputs[side], tmp_path / "broken")
    config = broken / "config.json"
    config.write_text(config.read_text().replace("{", '{"vocab_size": 7, ', 1))
    refused(
        *inputs.values(),
        CheckpointProblem,
        f"{config} is not valid JSON (the key 'vocab_size' appears twice)",
        next_step="download it again",
    )


def test_a_tensor_of_the_index(
    base: Path, diff: Path, tmp_path: Path, refused: Refused, side: str
) -> None:
    inputs = {"base": base, "diff": diff}
    inputs[side] = broken = damage.sharded(inputs[side], tmp_path / "broken")
    index = broken / damage.INDEX
    place = f'"weight_map": {{"{NORM}": "model-1.safetensors", '
    index.write_text(index.read_text().replace('"weight_map": {', place))
    refused(
        *inputs.values(),
        CheckpointProblem,
        f"{index} is not valid JSON (the key {NORM!r} appears twice)",
        next_step="download it again",
    )


def test_a_tensor_of_two_shards(
    base: Path, diff: Path, tmp_path: Path, refused: Refused, side: str
) -> None:
    inputs = {"base": base, "diff": diff}
    inputs[side] = broken = damage.sharded(inputs[side], tmp_path / "broken")
    first, second = (load_file(broken / f"model-{number}.safetensors") for number in (1, 2))
    save_file(first | {NORM: second[NORM]}, broken / "model-1.safetensors")
    refused(
        *inputs.values(),
        CheckpointProblem,
        f"{broken / 'model-1.safetensors'} holds {NORM!r}, which the index places in "
        "model-2.safetensors",
        next_step="download the checkpoint again, index included",
    )


@pytest.mark.parametrize("second", ["as the first", "another"])
def test_a_tensor_of_a_header(
    base: Path, diff: Path, tmp_path: Path, refused: Refused, side: str, second: str
) -> None:
    inputs = {"base": base, "diff": diff}
    inputs[side] = broken = damage.copied(inputs[side], tmp_path / "broken")
    file = broken / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + length])
    shape = entries[NORM]["shape"] if second == "as the first" else [1]
    again = json.dumps({NORM: entries[NORM] | {"shape": shape}}).encode()
    text = again[:-1] + b"," + content[9 : 8 + length]
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    refused(
        *inputs.values(),
        CheckpointProblem,
        f"{file} is not a complete safetensors file (the key {NORM!r} appears twice)",
        next_step="download it again",
    )


def test_a_word_of_one_entry(base: Path, diff: Path, tmp_path: Path, refused: Refused) -> None:
    broken = damage.copied(base, tmp_path / "broken")
    file = broken / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content.replace(b'{"dtype":"F16",', b'{"dtype":"F16","dtype":"F16",', 1))
    refused(
        broken,
        diff,
        CheckpointProblem,
        starting(f"{file} is not a complete safetensors file ("),
        next_step="download it again",
    )
