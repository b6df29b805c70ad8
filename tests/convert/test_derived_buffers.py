"""Buffers that follow from the config are no weights: no stage adds, stores or counts them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

import damage
import drawn
import pico
import stages
import weights
from camelpress.convert.export.export_checkpoint import export
from camelpress.convert.settings import ExportSettings
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.llama import is_derived_buffer
from camelpress.core.packing.linear_layers import count_parameters
from camelpress.publish.release_diff import diff_releases

ATTENTION = "model.layers.0.self_attn."
BUFFERS: dict[str, Tensor] = {
    f"{ATTENTION}rotary_emb.inv_freq": torch.full((8,), torch.nan),
    f"{ATTENTION}rotary_emb.original_inv_freq": torch.ones(8),
    f"{ATTENTION}rotary_emb.cos_cached": torch.ones(1, 1, 128, 16),
    f"{ATTENTION}rotary_emb.sin_cached": torch.ones(1, 1, 128, 16, dtype=torch.float16),
    f"{ATTENTION}bias": torch.ones(1, 1, 128, 128, dtype=torch.bool),
    f"{ATTENTION}masked_bias": torch.tensor(-1e4),
    "model.rotary_emb.inv_freq": torch.ones(8, dtype=torch.float64),
    "model.embeddings.position_ids": torch.arange(128)[None],
    "rope.freqs": torch.ones(8),
}
QUANTIZATION = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False}


def names(folder: Path) -> set[str]:
    return {name for file in folder.glob("*.safetensors") for name in safe_open(file, "pt").keys()}


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.self_attn.o_proj.weight",
        "model.norm.weight",
        "model.norm.bias",
        "h.0.attn.c_attn.bias",
        "lm_head.bias",
        "reward_head.bias",
    ],
)
def test_weights_and_biases_are_no_buffers(name: str) -> None:
    assert not is_derived_buffer(name)


@pytest.mark.parametrize("sides", [("base",), ("tuned",), ("base", "tuned"), ("diff",)], ids=str)
def test_neither_make_diff_nor_recover_takes_them(
    base: Path, tuned: Path, tmp_path: Path, sides: tuple[str, ...]
) -> None:
    folders = {"base": base, "tuned": tuned}
    for role in folders.keys() & {*sides}:
        folders[role] = damage.with_tensors(folders[role], tmp_path / role, BUFFERS)
    made = stages.make_diff(folders["base"], folders["tuned"], tmp_path / "diff")
    assert names(tmp_path / "diff") == names(tuned)
    diff = tmp_path / "diff"
    if "diff" in sides:
        diff = damage.with_tensors(diff, tmp_path / "more", BUFFERS)
    report = stages.recover(folders["base"], diff, tmp_path / "back")
    assert weights.same(weights.read(tmp_path / "back"), weights.read(tuned))
    assert made.facts.record["left_out"] == ([] if "diff" in sides else sorted(BUFFERS))
    assert report.facts.record["left_out"] == ([] if sides == ("tuned",) else sorted(BUFFERS))


def test_quantize_leaves_them_out(chat: Path, tmp_path: Path) -> None:
    source = pico.write_model(tmp_path / "source", pico.Sizes(layers=1))
    more = damage.with_tensors(source, tmp_path / "more", BUFFERS)
    stages.quantize(source, tmp_path / "plain", chat)
    report = stages.quantize(more, tmp_path / "out", chat)
    assert weights.same(weights.read(tmp_path / "out"), weights.read(tmp_path / "plain"))
    assert report.facts.record["left_out"] == sorted(BUFFERS)


@pytest.mark.parametrize("layout", ["dense", "gptq-v2", "compressed-tensors"])
def test_export_leaves_them_out(base: Path, tmp_path: Path, layout: str) -> None:
    drawn.write_model(tmp_path / "in", base, QUANTIZATION, lambda _, layer: drawn.gptq(layer))
    more = damage.with_tensors(tmp_path / "in", tmp_path / "more", BUFFERS)
    settings = ExportSettings.parse({"to": layout}, source="test")
    export(Checkpoint.open(tmp_path / "in"), tmp_path / "plain", settings)
    report = export(Checkpoint.open(more), tmp_path / "out", settings)
    assert weights.same(weights.read(tmp_path / "out"), weights.read(tmp_path / "plain"))
    assert report.facts.record["left_out"] == sorted(BUFFERS)


def test_they_are_neither_counted_nor_compared(base: Path, tmp_path: Path) -> None:
    more = damage.with_tensors(base, tmp_path / "more", BUFFERS)
    count = sum(tensor.numel() for tensor in weights.read(base).values())
    assert (
        count_parameters(Checkpoint.open(more)) == count_parameters(Checkpoint.open(base)) == count
    )
    assert diff_releases(base, more).facts.record["differences"]["tensors"] == []
