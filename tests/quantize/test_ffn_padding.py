"""A feed-forward layer widened with zeros is the same function, and the zeros are exact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import gptq_reader
import pico
import stages
from camelpress.core import llama
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.shards import TensorInfo
from camelpress.core.errors import CheckpointProblem, RecipeProblem
from camelpress.inference.model.streamed_model import StreamedModel
from camelpress.inference.model.token_batches import TokenBatches
from camelpress.quantize.ffn_padding import WIDTH_KEY, PaddedCheckpoint
from camelpress.quantize.output_layout import Fp16View
from camelpress.quantize.settings import QuantizeSettings

CPU = torch.device("cpu")
NARROW, WIDE = pico.PICO.ffn, 128
IDS = [[5, 9, 33, 200, 7, 4, 150], [1, 2, 3]]
GRIDS = [(4, 32, True), (4, 64, False), (3, -1, False), (8, 128, True)]


def logits(checkpoint: Checkpoint) -> torch.Tensor:
    model = StreamedModel(checkpoint, device=CPU, dtype=torch.float32)
    with torch.inference_mode():
        return model.read_head()(
            model.last_hidden_states(TokenBatches(IDS, limit=model.max_positions), "test")
        )


def cut(folder: Path, out: Path) -> Path:
    """A quantized folder as a plain one, and without what was added."""
    gptq_reader.write_plain(folder, out)
    tensors = load_file(out / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith(("gate_proj.weight", "up_proj.weight")):
            tensors[name] = tensor[:NARROW].clone()
        elif name.endswith("down_proj.weight"):
            tensors[name] = tensor[:, :NARROW].clone()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {WIDTH_KEY: NARROW}))
    return out


# --- the view -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("multiple", "width"), [(1, 96), (32, 96), (64, 128), (100, 100), (97, 97), (512, 512)]
)
def test_it_is_widened_to_the_next_multiple(base: Path, multiple: int, width: int) -> None:
    source = Checkpoint.open(base)
    padded = PaddedCheckpoint(source, multiple)
    assert padded.config[WIDTH_KEY] == width
    assert source.config[WIDTH_KEY] == NARROW
    for name, info in padded.tensors.items():
        assert padded.read(name).shape == info.shape
    block = "model.layers.1.mlp"
    assert padded.tensor_info(f"{block}.up_proj.weight").shape == (width, 64)
    assert padded.tensor_info(f"{block}.down_proj.weight").shape == (64, width)
    assert padded.nbytes == source.nbytes + 2 * 3 * 64 * (width - NARROW) * 2


def test_what_was_there_is_there_and_the_rest_is_zero(base: Path) -> None:
    source, padded = Checkpoint.open(base), PaddedCheckpoint(Checkpoint.open(base), WIDE)
    for name in source.tensors:
        old, new = source.read(name), padded.read(name)
        assert new.dtype == old.dtype
        assert torch.equal(new[tuple(slice(size) for size in old.shape)], old)
        assert int((new != 0).sum()) == int((old != 0).sum())
        assert torch.equal(padded.read_rows(name, 1, 3), new[1:3])


def test_what_the_stage_reads_of_it(tuned: Path) -> None:
    settings = QuantizeSettings.parse({"modules": {"*.up_proj": {"keep": True}}}, source="test")
    source = PaddedCheckpoint(Checkpoint.open(tuned), WIDE)
    view = Fp16View.of(source, settings)
    for name in ("up", "gate"):
        weight = f"model.layers.0.mlp.{name}_proj.weight"
        kept = torch.float16 if name == "up" else torch.bfloat16
        assert torch.equal(view.read(weight), source.read(weight).to(kept))
        assert torch.equal(view.read_rows(weight, 90, 99), view.read(weight)[90:99])
        assert view.read(weight).dtype == view.read_rows(weight, 0, 2).dtype == kept


def test_biases_grow_with_their_layers(base: Path, tmp_path: Path) -> None:
    tensors = load_file(base / "model.safetensors")
    for linear, rows in (("gate", 96), ("up", 96), ("down", 64)):
        tensors[f"model.layers.0.mlp.{linear}_proj.bias"] = torch.ones(rows, dtype=torch.float16)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((base / "config.json").read_text())
    padded = PaddedCheckpoint(Checkpoint.open(tmp_path), WIDE)
    found = [padded.read(f"model.layers.0.mlp.{name}_proj.bias") for name in ("gate", "up", "down")]
    assert [len(each) for each in found] == [128, 128, 64]
    assert [float(each.sum()) for each in found] == [96, 96, 64]


def test_the_function_is_the_same(base: Path) -> None:
    source = Checkpoint.open(base)
    torch.testing.assert_close(
        logits(PaddedCheckpoint(source, WIDE)), logits(source), rtol=1e-5, atol=1e-6
    )


def test_a_config_without_a_width_is_refused(base: Path) -> None:
    source = Checkpoint.open(base)
    nameless = {key: value for key, value in source.config.items() if key != WIDTH_KEY}
    with pytest.raises(CheckpointProblem) as told:
        PaddedCheckpoint(Checkpoint(base, nameless, source.tensors), WIDE)
    assert told.value.message == f"{base / 'config.json'} has no {WIDTH_KEY} to raise"
    assert told.value.next_step == "write it there, or leave --pad-ffn out"


# --- quantized ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "group_size", "sym"), GRIDS)
def test_what_was_added_is_zero_to_the_bit_and_the_outputs_are_those_without_it(
    base: Path, chat: Path, tmp_path: Path, bits: int, group_size: int, sym: bool
) -> None:
    options: dict[str, Any] = {"bits": bits, "sym": sym, "dtype": "float32", "pad_ffn": WIDE}
    wide = {"*.down_proj": {"group_size": group_size}}
    report = stages.quantize(base, tmp_path / "out", chat, modules=wide, **options)
    assert report.facts.record["padded"] == {"from": NARROW, "to": WIDE}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config[WIDTH_KEY] == WIDE
    found = Checkpoint.open(tmp_path / "out")
    model = StreamedModel(found, device=CPU, dtype=torch.float32)
    for number in range(model.block_count):
        block = model.read_block(number)
        for name in ("mlp.gate_proj", "mlp.up_proj"):
            assert not bool(block.weight(name)[NARROW:].any())
            assert bool(block.weight(name)[NARROW - 1].any())
        assert not bool(block.weight("mlp.down_proj")[:, NARROW:].any())
        hidden = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(number))
        middle = block.mlp_middle(block.mlp_input(hidden))
        assert not bool(middle[..., NARROW:].any())
    without = Checkpoint.open(cut(tmp_path / "out", tmp_path / "cut"))
    torch.testing.assert_close(logits(found), logits(without), rtol=1e-5, atol=1e-6)
    expected = pico.load_model(tmp_path / "cut")(torch.tensor(IDS[:1])).logits[0]
    torch.testing.assert_close(logits(found)[: len(expected)], expected, rtol=1e-4, atol=1e-5)


def test_rounding_to_nearest_is_the_same_with_and_without(base: Path, tmp_path: Path) -> None:
    for name, multiple in (("narrow", 0), ("wide", WIDE)):
        stages.quantize(base, tmp_path / name, method="rtn", pad_ffn=multiple)
    narrow, wide = (gptq_reader.tensors(tmp_path / name) for name in ("narrow", "wide"))
    for linear, _ in llama.LINEARS:
        name = f"model.layers.0.{linear}"
        one, other = (gptq_reader.dequantize(each, name, 4) for each in (narrow, wide))
        assert (one == other[: one.shape[0], : one.shape[1]]).all()
        assert (other[one.shape[0] :] == 0).all()
        assert (other[:, one.shape[1] :] == 0).all()


def test_layers_that_stay_in_16_bits_are_widened_too(base: Path, tmp_path: Path) -> None:
    stages.quantize(
        base, tmp_path / "out", method="rtn", pad_ffn=WIDE, modules={"*.up_proj": {"keep": True}}
    )
    stored = gptq_reader.tensors(tmp_path / "out")
    up = stored["model.layers.0.mlp.up_proj.weight"]
    assert up.shape == (WIDE, 64)
    assert not bool(up[NARROW:].any())


def test_it_makes_a_group_size_fit(base: Path, tmp_path: Path) -> None:
    wide = {"*.down_proj": {"group_size": 64}}
    with pytest.raises(RecipeProblem, match="does not divide the 96 columns"):
        stages.quantize(base, tmp_path / "out", method="rtn", modules=wide)
    stages.quantize(base, tmp_path / "out", method="rtn", modules=wide, pad_ffn=64)


def test_llama_65b_for_eight_devices(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    info = TensorInfo(torch.float16, (8192, 22016), "model.safetensors", 0)
    padded = PaddedCheckpoint(Checkpoint(tmp_path, {WIDTH_KEY: 22016}, {name: info}), 1024)
    assert padded.config[WIDTH_KEY] == 22528
    assert padded.tensor_info(name).shape == (8192, 8 * 22 * 128)


def test_nothing_is_said_where_nothing_is_added(base: Path, tmp_path: Path) -> None:
    assert stages.quantize(base, tmp_path / "out", method="rtn").facts.record["padded"] is None
