"""Rules for single layers, read as the loaders read them, and written to leave nothing open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import gptq_reader
from camelpress.core import llama
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import CheckpointProblem
from camelpress.core.packing.dynamic_config import dynamic_rules, dynamic_settings
from camelpress.core.packing.gptq_format import pack_gptq
from camelpress.core.packing.linear_layers import read_linear

COMMON = {"bits": 4, "group_size": 128, "sym": True}
DOWN = "model.layers.10.mlp.down_proj"


@pytest.mark.parametrize(
    ("rules", "bits"),
    [
        ({}, 4),
        ({r".*\.down_proj.*": {"bits": 8}}, 8),
        ({r"+:.*\.down_proj.*": {"bits": 8}}, 8),
        ({r"-:.*\.down_proj.*": {}}, None),
        ({r"-:.*\.up_proj.*": {}, r"+:.*\.mlp\..*": {"bits": 8}}, 8),
        ({r"+:.*\.mlp\..*": {"sym": False}, r"+:.*\.down_proj": {"bits": 8}}, 4),  # the first
        ({r"-:.*\.mlp\..*": {}, r"+:.*\.down_proj": {"bits": 8}}, None),
        ({r"+:down_proj": {"bits": 8}}, 4),  # not from the beginning
        ({r"+:model\.layers\.1": {"bits": 8}}, 8),  # not to the end
        ({r"+:model\.layers\.1\.": {"bits": 8}}, 4),
    ],
)
def test_the_first_rule_that_matches_counts(rules: dict[str, Any], bits: int | None) -> None:
    found = dynamic_settings(COMMON | {"dynamic": rules}, DOWN)
    assert (found and found["bits"]) == bits
    if found:
        assert found["group_size"] == 128


def test_none_at_all_is_no_rule() -> None:
    assert dynamic_settings(COMMON | {"dynamic": None}, DOWN) == COMMON | {"dynamic": None}


@pytest.mark.parametrize("wrong", [["a"], "a", {"+:(": {"bits": 8}}, {".*": 8}, {".*": ["bits"]}])
def test_what_is_no_rule_is_refused(wrong: Any) -> None:
    with pytest.raises(CheckpointProblem) as told:
        dynamic_settings(COMMON | {"dynamic": wrong}, DOWN)
    assert "has a dynamic that cannot be read (" in told.value.message
    assert told.value.next_step == "compare it with the config of the original checkpoint"


SCHEMES = st.sampled_from([COMMON, COMMON | {"bits": 8}, COMMON | {"sym": False}, None])
NAMES = [linear.name for linear in llama.LINEARS]


@given(st.lists(st.tuples(*[SCHEMES] * len(NAMES)), min_size=1, max_size=12))
def test_what_is_written_says_what_was_meant(blocks: list[tuple[dict[str, Any] | None]]) -> None:
    layers = {
        f"model.layers.{number}.{name}": scheme
        for number, schemes in enumerate(blocks)
        for name, scheme in zip(NAMES, schemes, strict=True)
    }
    rules = dynamic_rules(COMMON, layers, len(blocks))
    assert json.loads(json.dumps(rules)) == rules
    assert bool(rules) == any(scheme != COMMON for scheme in layers.values())
    config = COMMON | {"dynamic": rules}
    for name, scheme in layers.items():
        found = dynamic_settings(config, name)
        assert (found and {key: found[key] for key in COMMON}) == scheme
        assert gptq_reader.bits_of(config, name) == (scheme and scheme["bits"])
        assert dynamic_settings(config, f"another.{name}") == config
        assert dynamic_settings(config, f"{name}.more") == config


@pytest.mark.parametrize("own", [COMMON | {"bits": 8}, None])
def test_what_loaders_fuse_has_a_name_of_its_own(own: dict[str, Any] | None) -> None:
    layers: dict[str, dict[str, Any] | None] = {}
    for number in range(2):
        layers |= {f"model.layers.{number}.{name}": COMMON for name in NAMES}
    layers |= {f"model.layers.1.self_attn.{name}_proj": own for name in "qkv"}
    layers["model.layers.1.mlp.up_proj"] = own
    config = COMMON | {"dynamic": dynamic_rules(COMMON, layers, 2)}
    found = dynamic_settings(config, "model.layers.1.self_attn.qkv_proj")
    assert (found and found["bits"]) == (own and 8)
    assert dynamic_settings(config, "model.layers.0.self_attn.qkv_proj") == config
    assert dynamic_settings(config, "model.layers.1.mlp.gate_up_proj") == config  # they differ


# --- a checkpoint with such rules -----------------------------------------------------------------


def checkpoint(folder: Path, rules: dict[str, Any]) -> Checkpoint:
    """One layer of 8 bits."""
    codes = (torch.arange(32 * 64) % 256).reshape(32, 64).to(torch.uint8)
    packed = pack_gptq(
        codes,
        torch.ones(32, 2, dtype=torch.float16),
        torch.full((32, 2), 128, dtype=torch.uint8),
        (torch.arange(64) // 32).to(torch.int32),
        bits=8,
    )
    save_file(
        {f"{DOWN}.{name}": part for name, part in vars(packed).items()},
        folder / "model.safetensors",
    )
    config = {"quant_method": "gptq", **COMMON, "group_size": 32, "dynamic": rules}
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    return Checkpoint.open(folder)


def test_a_layer_is_read_by_its_own_rule(tmp_path: Path) -> None:
    found = read_linear(checkpoint(tmp_path, {r"+:.*\.1\d\..*": {"bits": 8}}), DOWN)
    expected = (torch.arange(32 * 64) % 256).reshape(32, 64) - 128.0
    assert torch.equal(found, expected)


def test_bits_that_do_not_exist_are_told_with_the_layer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointProblem) as told:
        read_linear(checkpoint(tmp_path, {".*": {"bits": 5}}), DOWN)
    assert told.value.message == f"{tmp_path} has 5 bits per weight of {DOWN}"


def test_a_layer_that_a_rule_calls_plain_has_to_be_plain(tmp_path: Path) -> None:
    with pytest.raises(CheckpointProblem, match=f"lacks the tensor '{DOWN}.weight'"):
        read_linear(checkpoint(tmp_path, {"-:.*": {}}), DOWN)
