"""Layers with settings of their own: solved, written, and read by others as they were meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import gptq_reader
import pico
import stages
from camelpress.core import llama
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import RecipeProblem
from camelpress.core.packing.linear_layers import count_parameters
from camelpress.inference.model.streamed_model import StreamedModel
from camelpress.inference.model.token_batches import TokenBatches
from camelpress.pipeline.recipe import read_recipe
from camelpress.quantize.settings import QuantizeSettings

CPU = torch.device("cpu")
MIXED = {
    "*.down_proj": {"bits": 8, "group_size": 32},
    "model.layers.0.*": {"sym": False},
    "*.1.self_attn.[qkv]_proj": {"bits": 3, "group_size": -1},
    "*.layers.1.self_attn.k_proj": {"bits": 2},
    "*.1.mlp.gate_proj": {"keep": True},
}
# fmt: off
EXPECTED = {  # of the second block and some of the first: bits, group size, symmetric
    "model.layers.0.self_attn.q_proj": (4, 32, False),
    "model.layers.0.mlp.down_proj":    (8, 32, False),
    "model.layers.1.self_attn.q_proj": (3, -1, True),
    "model.layers.1.self_attn.k_proj": (2, -1, True),
    "model.layers.1.self_attn.v_proj": (3, -1, True),
    "model.layers.1.self_attn.o_proj": (4, 32, True),
    "model.layers.1.mlp.gate_proj":    None,
    "model.layers.1.mlp.up_proj":      (4, 32, True),
    "model.layers.1.mlp.down_proj":    (8, 32, True),
}
# fmt: on


def weights(folder: Path, number: int) -> dict[str, torch.Tensor]:
    """The linear layers of a block, as our own reader has them."""
    model = StreamedModel(Checkpoint.open(folder), device=CPU, dtype=torch.float32)
    block = model.read_block(number)
    return {name: block.weight(name) for name, _ in llama.LINEARS}


@pytest.fixture(scope="module")
def mixed(base: Path, chat: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pico model in many ways."""
    out = tmp_path_factory.mktemp("mixed") / "model"
    stages.quantize(base, out, chat, modules=MIXED, dtype="float32", correction=0.0)
    return out


def test_later_patterns_win_and_what_they_do_not_say_stays() -> None:
    found = QuantizeSettings.parse({"group_size": 32, "modules": MIXED}, source="test")
    for name, expected in EXPECTED.items():
        own = found.for_layer(name)
        assert (own and (own.bits, own.group_size, own.sym)) == expected
    again = QuantizeSettings.parse(
        {"modules": {"*": {"keep": True}, "*.q_proj": {"keep": False}}}, source="test"
    )
    assert again.for_layer("model.layers.0.mlp.up_proj") is None
    assert again.for_layer("model.layers.0.self_attn.q_proj") == again


@pytest.mark.parametrize("number", [0, 1])
def test_both_readers_agree_and_every_layer_is_what_it_should_be(
    base: Path, mixed: Path, number: int
) -> None:
    stored, source = gptq_reader.tensors(mixed), gptq_reader.tensors(base)
    config = gptq_reader.quantization(mixed)
    for linear, ours in weights(mixed, number).items():
        name = f"model.layers.{number}.{linear}"
        bits = gptq_reader.bits_of(config, name)
        wanted = QuantizeSettings.parse({"group_size": 32, "modules": MIXED}, source="").for_layer(
            name
        )
        assert bits == (wanted and wanted.bits)
        if wanted is None:
            assert torch.equal(stored[f"{name}.weight"], source[f"{name}.weight"])
            assert f"{name}.qweight" not in stored
            continue
        assert f"{name}.weight" not in stored
        theirs = torch.from_numpy(gptq_reader.dequantize(stored, name, wanted.bits).copy())
        assert torch.equal(ours, theirs)
        cols = theirs.shape[1]
        size = cols if wanted.group_size == -1 else wanted.group_size
        assert len(stored[f"{name}.scales"]) == cols // size
        middle = bool(
            (gptq_reader.zeros(stored, name, wanted.bits) == 2 ** (wanted.bits - 1)).all()
        )
        assert middle == wanted.sym
        weight = source[f"{name}.weight"].float()
        assert float((theirs - weight).norm() / weight.norm()) < 2.0 ** (2 - wanted.bits)


def test_the_whole_model_gives_the_logits_of_transformers(mixed: Path, tmp_path: Path) -> None:
    ids = [[5, 9, 33, 200, 7, 4, 150]]
    plain = pico.load_model(gptq_reader.write_plain(mixed, tmp_path / "plain"))
    model = StreamedModel(Checkpoint.open(mixed), device=CPU, dtype=torch.float32)
    sequences = TokenBatches(ids, limit=model.max_positions)
    with torch.inference_mode():
        expected = plain(torch.tensor(ids)).logits[0]
        found = model.read_head()(model.last_hidden_states(sequences, "test"))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_rules_say_exactly_what_is_meant(mixed: Path) -> None:
    for name in ("config.json", "quantize_config.json"):
        told = json.loads((mixed / name).read_text())
        told = told.get("quantization_config", told)
        assert (told["bits"], told["group_size"], told["sym"]) == (4, 32, True)
        rules = told["dynamic"]
        eight = {"bits": 8, "group_size": 32, "sym": True}
        assert rules[r"+:^model\.layers\.(?:1)\.mlp\.down_proj$"] == eight
        assert rules[r"-:^model\.layers\.(?:1)\.mlp\.gate_proj$"] == {}
        asym = {"bits": 4, "group_size": 32, "sym": False}
        assert rules[r"+:^model\.layers\.(?:0)\.self_attn\.qkv_proj$"] == asym
        assert rules[r"+:^model\.layers\.(?:0)\.mlp\.gate_up_proj$"] == asym
        assert not any("1)" in key and "qkv" in key for key in rules)


def test_what_holds_in_all_blocks_is_one_rule(base: Path, tmp_path: Path) -> None:
    stages.quantize(
        base, tmp_path / "out", method="rtn", modules={"*.mlp.*": {"bits": 8}, "*.o_*": {"bits": 4}}
    )
    eight = {"bits": 8, "group_size": 32, "sym": True}
    assert gptq_reader.quantization(tmp_path / "out")["dynamic"] == {
        rf"+:^model\.layers\.\d+\.mlp\.{name}$": eight
        for name in ("gate_proj", "up_proj", "down_proj", "gate_up_proj")
    }


def test_without_them_nothing_is_said_of_them(base: Path, tmp_path: Path) -> None:
    stages.quantize(base, tmp_path / "out", method="rtn", modules={"*": {"bits": 4}})
    assert "dynamic" not in gptq_reader.quantization(tmp_path / "out")


def test_parameters_are_counted_as_what_they_stand_for(base: Path, mixed: Path) -> None:
    assert count_parameters(Checkpoint.open(mixed)) == count_parameters(Checkpoint.open(base))


def test_layers_that_are_alike_do_not_feel_the_others(
    base: Path, chat: Path, tmp_path: Path
) -> None:
    """v is solved with q or without it, after the same inputs: the same codes."""
    for name, pattern in (("alone", "*.0.self_attn.q_proj"), ("together", "*.1.mlp.down_proj")):
        stages.quantize(
            base, tmp_path / name, chat, modules={pattern: {"bits": 8}}, dtype="float32"
        )
    alone, together = (gptq_reader.tensors(tmp_path / name) for name in ("alone", "together"))
    name = "model.layers.0.self_attn.v_proj.qweight"
    assert torch.equal(alone[name], together[name])
    assert alone[name.replace("v_proj", "q_proj")].shape[0] == 2 * together[name].shape[0]


def test_everything_may_stay_as_it_is(base: Path, chat: Path, tmp_path: Path) -> None:
    stages.quantize(base, tmp_path / "out", chat, modules={"model.layers.0.*": {"keep": True}})
    stored, source = gptq_reader.tensors(tmp_path / "out"), gptq_reader.tensors(base)
    for linear, _ in llama.LINEARS:
        name = f"model.layers.0.{linear}.weight"
        assert torch.equal(stored[name], source[name])


def test_a_recipe_says_it_in_yaml_and_an_override_too(tmp_path: Path) -> None:
    own = "modules: {'*.down_proj': {bits: 8}, 'model.layers.0.*': {sym: false}}"
    (tmp_path / "r.yaml").write_text(f"base: a\ndiff: b\nout: c\nquantize: {{{own}}}\n")
    found = read_recipe(tmp_path / "r.yaml").quantize
    assert list(found.modules) == ["*.down_proj", "model.layers.0.*"]
    assert found.for_layer("model.layers.0.mlp.down_proj") == found.model_copy(
        update={"bits": 8, "sym": False}
    )
    found = read_recipe(
        tmp_path / "r.yaml", ['quantize.modules={"*.o_proj": {keep: true}}']
    ).quantize
    assert found.for_layer("model.layers.0.self_attn.o_proj") is None
    assert found.for_layer("model.layers.0.mlp.down_proj") == found


@pytest.mark.parametrize("pattern", ["*.fused_proj", "lm_head", "model.layers.2.*", "down_proj"])
def test_a_pattern_without_a_layer_is_refused(base: Path, tmp_path: Path, pattern: str) -> None:
    with pytest.raises(RecipeProblem) as told:
        stages.quantize(base, tmp_path / "out", method="rtn", modules={pattern: {"bits": 8}})
    assert told.value.exit_code == 2
    assert told.value.message == (
        f"no layer of 2 blocks matches the pattern {pattern!r} of quantize.modules"
    )
    assert "names such as model.layers.1.mlp.down_proj" in told.value.next_step
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "wrong", [{"bits": 5}, {"bits": "8"}, {"groupsize": 32}, {"keep": "yes"}, {"group_size": 0}]
)
def test_settings_of_a_module_are_read_strictly(wrong: dict[str, Any]) -> None:
    with pytest.raises(RecipeProblem, match=r"modules\.\*\.down_proj\."):
        QuantizeSettings.parse({"modules": {"*.down_proj": wrong}}, source="test")


def test_a_group_size_that_does_not_divide_one_layer_names_it(base: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeProblem) as told:
        stages.quantize(
            base, tmp_path / "out", method="rtn", modules={"*.down_proj": {"group_size": 64}}
        )
    assert told.value.message == (
        "group size 64 does not divide the 96 columns of model.layers.0.mlp.down_proj"
    )
