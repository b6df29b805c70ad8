"""The packed layout agrees with a slow twin, bit by bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

import packing_oracle as oracle
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.format_detection import READABLE_FORMATS
from camelpress.core.errors import CheckpointProblem, ShapeMismatch, UnknownTensor
from camelpress.core.packing.bitpacking import pack_words, unpack_words
from camelpress.core.packing.gptq_format import GptqTensors, dequantize_gptq, gptq_specs, pack_gptq
from camelpress.core.packing.linear_layers import read_linear

BITS = st.sampled_from([2, 3, 4, 8])
LINEAR = "model.layers.0.mlp.down_proj"


class Drawn(NamedTuple):
    """A solved layer."""

    bits: int
    codes: Tensor
    scales: Tensor
    zeros: Tensor
    group_of: Tensor

    def packed(self) -> GptqTensors:
        return pack_gptq(self.codes, self.scales, self.zeros, self.group_of, bits=self.bits)

    def oracle(self, stored_minus: int = 1) -> oracle.Layer:
        return oracle.pack_layer(
            self.codes.tolist(),
            self.scales.tolist(),
            self.zeros.tolist(),
            self.group_of.tolist(),
            bits=self.bits,
            stored_minus=stored_minus,
        )


def draw_layer(bits: int, rows: int, cols: int, groups: int, seed: int) -> Drawn:
    generator = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    return Drawn(
        bits,
        integers(0, 2**bits, rows, cols).to(torch.uint8),
        (0.01 * torch.rand(rows, groups, generator=generator) + 1e-4).to(torch.float16),
        integers(1, 2**bits, rows, groups).to(torch.uint8),
        integers(0, groups, cols).to(torch.int32),
    )


@st.composite
def layers(draw: st.DrawFn) -> Drawn:
    rows, cols = 32 * draw(st.integers(1, 2)), 32 * draw(st.integers(1, 2))
    return draw_layer(draw(BITS), rows, cols, draw(st.integers(1, 3)), draw(st.integers(0, 2**31)))


# --- against the twin ---------------------------------------------------------------------------


@given(BITS, st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**31))
@settings(deadline=None, max_examples=60)
def test_words_are_those_of_the_twin(bits: int, blocks: int, rows: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (32 * blocks, rows), generator=generator).to(torch.uint8)
    words = pack_words(codes, bits)
    assert words.T.tolist() == [oracle.pack_stream(row, bits) for row in codes.T.tolist()]
    assert torch.equal(unpack_words(words, bits), codes)


@given(BITS, st.lists(st.integers(-(2**31), 2**31 - 1), min_size=3, max_size=3))
@settings(deadline=None, max_examples=60)
def test_any_words_unpack_as_in_the_twin(bits: int, words: list[int]) -> None:
    codes = unpack_words(torch.tensor(words, dtype=torch.int32)[:, None], bits)
    assert codes[:, 0].tolist() == oracle.unpack_stream(words, bits)
    assert pack_words(codes, bits)[:, 0].tolist() == words


@given(layers())
@settings(deadline=None, max_examples=15)
def test_a_packed_layer_is_that_of_the_twin(layer: Drawn) -> None:
    packed, expected = layer.packed(), layer.oracle()
    assert packed.qweight.tolist() == expected.qweight
    assert packed.qzeros.tolist() == expected.qzeros
    assert packed.scales.tolist() == expected.scales
    assert packed.g_idx.tolist() == expected.g_idx


@given(layers())
@settings(deadline=None, max_examples=15)
def test_a_layer_dequantizes_as_in_the_twin(layer: Drawn) -> None:
    found = dequantize_gptq(layer.packed(), bits=layer.bits, zero_offset=1)
    expected = oracle.dequantize(layer.oracle(), bits=layer.bits)
    assert torch.equal(found, torch.tensor(expected))


# --- golden words -------------------------------------------------------------------------------


def test_the_low_nibble_is_the_first_column() -> None:
    words = pack_words(torch.arange(8, dtype=torch.uint8)[:, None], 4)
    assert words.tolist() == [[0x76543210]]


def test_the_highest_bit_is_the_sign() -> None:
    words = pack_words(torch.full((8, 1), 15, dtype=torch.uint8), 4)
    assert words.tolist() == [[-1]]


def test_three_bits_run_across_words() -> None:
    codes = torch.arange(8, dtype=torch.uint8).repeat(4)[:, None]  # a stream of octal digits
    words = [int(word) & 0xFFFFFFFF for word in pack_words(codes, 3)]
    assert words == [0x88FAC688, 0xC688FAC6, 0xFAC688FA]
    assert sum(word << 32 * place for place, word in enumerate(words)) == int("76543210" * 4, 8)


def test_symmetric_zeros_of_4_bits_are_7_in_every_nibble() -> None:
    layer = draw_layer(4, 64, 32, 2, seed=0)
    packed = layer._replace(zeros=torch.full_like(layer.zeros, 8)).packed()
    assert packed.qzeros.shape == (2, 8)
    assert set(packed.qzeros.flatten().tolist()) == {0x77777777}


@pytest.mark.parametrize(("bits", "word"), [(2, 0x55555555), (8, 0x7F7F7F7F)])
def test_symmetric_zeros_of_other_widths(bits: int, word: int) -> None:
    layer = draw_layer(bits, 32, 32, 1, seed=0)
    packed = layer._replace(zeros=torch.full_like(layer.zeros, 2 ** (bits - 1))).packed()
    assert set(packed.qzeros.flatten().tolist()) == {word}


# --- arithmetic ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_weight_is_scale_times_code_minus_zero(bits: int) -> None:
    layer = draw_layer(bits, 32, 96, 3, seed=1)
    group = layer.group_of.long()
    expected = layer.scales.float()[:, group] * (
        layer.codes.float() - layer.zeros.float()[:, group]
    )
    assert torch.equal(dequantize_gptq(layer.packed(), bits=bits, zero_offset=1), expected)


@pytest.mark.parametrize("zero", range(1, 16))
def test_every_zero_point_comes_back(zero: int) -> None:
    layer = draw_layer(4, 32, 32, 1, seed=zero)
    layer = layer._replace(
        zeros=torch.full_like(layer.zeros, zero),
        scales=torch.ones_like(layer.scales),
    )
    found = dequantize_gptq(layer.packed(), bits=4, zero_offset=1)
    assert torch.equal(found, layer.codes.float() - zero)


def test_a_zero_point_of_zero_wraps_round() -> None:
    layer = draw_layer(4, 32, 32, 1, seed=0)
    packed = layer._replace(zeros=torch.zeros_like(layer.zeros)).packed()
    assert set(packed.qzeros.flatten().tolist()) == {-1}
    found = dequantize_gptq(packed, bits=4, zero_offset=1)
    assert torch.equal(found, layer.codes.float() * layer.scales.float())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_version_2_stores_the_zero_point_as_it_is(bits: int) -> None:
    layer = draw_layer(bits, 32, 32, 2, seed=2)
    first = layer.packed()
    second = GptqTensors(
        first.qweight,
        torch.tensor(layer.oracle(stored_minus=0).qzeros, dtype=torch.int32),
        first.scales,
        first.g_idx,
    )
    assert not torch.equal(first.qzeros, second.qzeros)
    assert torch.equal(
        dequantize_gptq(first, bits=bits, zero_offset=1),
        dequantize_gptq(second, bits=bits, zero_offset=0),
    )


# --- shapes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_announced_shapes_are_those_of_the_packed_layer(bits: int) -> None:
    packed = draw_layer(bits, 64, 96, 3, seed=0).packed()
    announced = gptq_specs(LINEAR, 64, 96, groups=3, bits=bits)
    assert {
        name.removeprefix(f"{LINEAR}."): (slot.dtype, slot.shape)
        for name, slot in announced.items()
    } == {name: (part.dtype, tuple(part.shape)) for name, part in vars(packed).items()}


@pytest.mark.parametrize(
    ("values", "bits", "multiple"), [(12, 4, 8), (33, 3, 32), (8, 2, 16), (6, 8, 4)]
)
def test_codes_that_do_not_fill_words_are_refused(values: int, bits: int, multiple: int) -> None:
    with pytest.raises(ShapeMismatch) as told:
        pack_words(torch.zeros(values, 1, dtype=torch.uint8), bits)
    assert str(told.value) == (
        f"{values} codes of {bits} bits do not fill whole 32-bit words; "
        f"use a width that is a multiple of {multiple}"
    )


# --- a linear layer of a checkpoint -------------------------------------------------------------

LAYER = draw_layer(4, 32, 64, 2, seed=3)
GPTQ = {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq"}


def checkpoint(folder: Path, config: dict[str, Any] | None, **changed: Tensor | None) -> Checkpoint:
    """A checkpoint of one packed layer; parts are replaced by keyword, or left out as None."""
    parts: dict[str, Tensor | None] = vars(LAYER.packed()) | changed
    save_file(
        {f"{LINEAR}.{name}": part for name, part in parts.items() if part is not None},
        folder / "model.safetensors",
    )
    content = {} if config is None else {"quantization_config": config}
    (folder / "config.json").write_text(json.dumps(content))
    return Checkpoint.open(folder)


def test_a_packed_layer_is_read_as_its_weights(tmp_path: Path) -> None:
    expected = dequantize_gptq(LAYER.packed(), bits=4, zero_offset=1)
    assert torch.equal(read_linear(checkpoint(tmp_path, GPTQ), LINEAR), expected)


def test_a_format_that_is_not_named_is_version_1(tmp_path: Path) -> None:
    config = {"quant_method": "gptq", "bits": 4}
    expected = dequantize_gptq(LAYER.packed(), bits=4, zero_offset=1)
    assert torch.equal(read_linear(checkpoint(tmp_path, config), LINEAR), expected)


def test_version_2_is_read_by_its_own_rule(tmp_path: Path) -> None:
    zeros = torch.tensor(LAYER.oracle(stored_minus=0).qzeros, dtype=torch.int32)
    found = checkpoint(tmp_path, GPTQ | {"checkpoint_format": "gptq_v2"}, qzeros=zeros)
    expected = dequantize_gptq(LAYER.packed(), bits=4, zero_offset=1)
    assert torch.equal(read_linear(found, LINEAR), expected)


def test_a_plain_layer_is_read_as_it_is(tmp_path: Path) -> None:
    weight = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)
    save_file({f"{LINEAR}.weight": weight}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": GPTQ}))
    found = read_linear(Checkpoint.open(tmp_path), LINEAR)
    assert found.dtype is torch.bfloat16
    assert torch.equal(found, weight)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"quant_method": "awq"}, "awq/gptq"),
        ({"checkpoint_format": "marlin"}, "gptq/marlin"),
        ({"checkpoint_format": ["gptq"]}, r"gptq/['gptq']"),
    ],
)
def test_another_packing_is_refused(tmp_path: Path, changed: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointProblem) as told:
        read_linear(checkpoint(tmp_path, GPTQ | changed), LINEAR)
    assert told.value.message == f"{tmp_path} is quantized as {named}"
    assert told.value.next_step == f"give a checkpoint of {READABLE_FORMATS}"


@pytest.mark.parametrize("bits", [None, 5, 1])
def test_another_number_of_bits_is_refused(tmp_path: Path, bits: object) -> None:
    with pytest.raises(CheckpointProblem) as told:
        read_linear(checkpoint(tmp_path, GPTQ | {"bits": bits}), LINEAR)
    assert told.value.message == f"{tmp_path} has {bits} bits per weight"
    assert told.value.next_step == "use one of (2, 3, 4, 8)"


@pytest.mark.parametrize("part", ["qweight", "qzeros", "scales"])
def test_a_part_that_is_missing_is_named(tmp_path: Path, part: str) -> None:
    with pytest.raises(UnknownTensor, match=f"lacks the tensor '{LINEAR}.{part}'"):
        read_linear(checkpoint(tmp_path, GPTQ, **{part: None}), LINEAR)


@pytest.mark.parametrize(
    ("part", "changed", "found", "needed"),
    [
        ("qweight", torch.zeros(7, 32, dtype=torch.int32), [7, 32], [8, 32]),
        ("qzeros", torch.zeros(2, 3, dtype=torch.int32), [2, 3], [2, 4]),
        ("qzeros", torch.zeros(3, 4, dtype=torch.int32), [3, 4], [2, 4]),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(
    tmp_path: Path, part: str, changed: Tensor, found: list[int], needed: list[int]
) -> None:
    with pytest.raises(ShapeMismatch) as told:
        read_linear(checkpoint(tmp_path, GPTQ, **{part: changed}), LINEAR)
    assert told.value.message == (
        f"{tmp_path} holds '{LINEAR}.{part}' as {found}, its scales and g_idx ask for {needed}"
    )
    assert told.value.next_step == "download or quantize the checkpoint again"


@pytest.mark.parametrize("group", [2, -1])
def test_a_group_that_has_no_scale_is_refused(tmp_path: Path, group: int) -> None:
    places = LAYER.group_of.clone()
    places[5] = group
    with pytest.raises(CheckpointProblem) as told:
        read_linear(checkpoint(tmp_path, GPTQ, g_idx=places), LINEAR)
    assert told.value.message == (
        f"{tmp_path} holds '{LINEAR}.g_idx' with groups beyond the 2 that have scales"
    )
    assert told.value.next_step == "download or quantize the checkpoint again"
