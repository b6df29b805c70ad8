"""compressed-tensors' layout agrees with a slow twin, and says no where its parts disagree."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

import drawn
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import CheckpointProblem, ShapeMismatch, UnknownTensor
from camelpress.core.packing import compressed_tensors_format
from camelpress.core.packing.linear_layers import check_packed_linears, read_linear
from camelpress.core.packing.quantized_weight import QuantizedWeight

LINEAR = "model.layers.0.mlp.down_proj"
AGAIN = "download or quantize the checkpoint again"


def config(**weights: Any) -> dict[str, Any]:
    """As llm-compressor writes it."""
    given = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group"}
    given |= {"group_size": 32, "actorder": "static", "dynamic": False, "observer": "minmax"}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": given | weights,
                "input_activations": None,
                "output_activations": None,
                "format": "pack-quantized",
            }
        },
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "sparsity_config": {},
        "transform_config": {},
        "global_compression_ratio": None,
        "version": "0.19.0",
    }


def checkpoint(
    folder: Path, parts: Mapping[str, Tensor | None], told: dict[str, Any]
) -> Checkpoint:
    """A checkpoint of one packed layer."""
    folder.mkdir(exist_ok=True)
    save_file(
        {f"{LINEAR}.{name}": part.contiguous() for name, part in parts.items() if part is not None},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(json.dumps({"quantization_config": told}))
    return Checkpoint.open(folder)


def as_codes(layer: drawn.Drawn) -> QuantizedWeight:
    codes, zeros = layer.codes.to(torch.uint8), layer.zeros.to(torch.uint8)
    return QuantizedWeight(codes, layer.scales, zeros, layer.group_of, layer.bits)


@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    rows=st.integers(1, 40),
    cols=st.integers(1, 70),
    size=st.sampled_from([-1, 8, 32]),
    sym=st.booleans(),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=60)
def test_a_layer_is_read_as_the_twin_laid_it_down(
    tmp_path_factory: pytest.TempPathFactory,
    bits: int,
    rows: int,
    cols: int,
    size: int,
    sym: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    layer = drawn.draw(rows, cols, bits=bits, group_size=size, sym=sym, scales=dtype, seed=seed)
    strategy = {"strategy": "channel", "group_size": None} if size == -1 else {"group_size": size}
    folder = tmp_path_factory.mktemp("one")
    told = config(num_bits=bits, symmetric=sym, **strategy)
    found = read_linear(checkpoint(folder, {**drawn.compressed(layer, sym=sym)}, told), LINEAR)
    assert found.dtype is torch.float32
    assert torch.equal(found, layer.weight.float())
    if dtype is not torch.float32:
        assert torch.equal(found.double(), layer.weight)  # not even rounded


@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    rows=st.integers(1, 2),
    cols=st.integers(1, 3),
    sym=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=30)
def test_a_layer_is_packed_as_by_the_twin(
    bits: int, rows: int, cols: int, sym: bool, seed: int
) -> None:
    layer = drawn.draw(32 * rows, 32 * cols, bits=bits, sym=sym, seed=seed)
    found, expected = (
        compressed_tensors_format.pack_compressed(as_codes(layer), sym=sym),
        drawn.compressed(layer, sym=sym),
    )
    assert found.keys() == expected.keys()
    for name, part in found.items():
        assert torch.equal(part, expected[name]), name
        assert part.is_contiguous()
    announced = compressed_tensors_format.compressed_specs(
        LINEAR, 32 * rows, 32 * cols, groups=cols, bits=bits, scales=torch.float16, sym=sym
    )
    assert {name: (slot.dtype, slot.shape) for name, slot in announced.items()} == {
        f"{LINEAR}.{name}": (part.dtype, tuple(part.shape)) for name, part in expected.items()
    }


def test_a_golden_word() -> None:
    # Low nibbles first: codes 0, 8, 15, 7, 9, 1, 14, 8, which stand for -8, 0, 7, -1, 1, -7, 6, 0.
    word = int.from_bytes(bytes([0x80, 0x7F, 0x19, 0x8E]), "little", signed=True)
    parts = {
        "weight_packed": torch.full((3, 8), word, dtype=torch.int32),
        "weight_scale": torch.tensor([[1.0, 0.5], [2.0, 0.5], [4.0, 0.5]], dtype=torch.bfloat16),
        "weight_shape": torch.tensor([3, 64]),
    }
    found = compressed_tensors_format.unpack_compressed(
        parts, torch.arange(64) // 32, bits=4
    ).dequantize()
    codes = torch.tensor([-8.0, 0, 7, -1, 1, -7, 6, 0]).repeat(4)
    for row in range(3):
        assert torch.equal(found[row, :32], codes * 2.0**row)
        assert torch.equal(found[row, 32:], codes * 0.5)


def test_zero_points_of_older_versions_are_bytes(tmp_path: Path) -> None:
    layer = drawn.draw(32, 64, sym=False)
    signed = (layer.zeros - 8).to(torch.int8)
    parts = {**drawn.compressed(layer, sym=False), "weight_zero_point": signed}
    found = read_linear(checkpoint(tmp_path, parts, config(symmetric=False)), LINEAR)
    assert torch.equal(found.double(), layer.weight)


@pytest.mark.parametrize("order", ["group", "dynamic", True])
def test_groups_of_columns_anywhere_are_read(tmp_path: Path, order: Any) -> None:
    layer = drawn.draw(32, 64, any_order=True)
    parts = {**drawn.compressed(layer, sym=True), "weight_g_idx": layer.group_of.int()}
    found = read_linear(checkpoint(tmp_path, parts, config(actorder=order)), LINEAR)
    assert torch.equal(found.double(), layer.weight)


# --- what is refused ------------------------------------------------------------------------------

SYM = drawn.compressed(drawn.draw(32, 64), sym=True)
ASYM = drawn.compressed(drawn.draw(32, 64, sym=False), sym=False)


def refused(folder: Path, parts: dict[str, Tensor | None], **weights: Any) -> CheckpointProblem:
    """What is said before a code is read, and when the layer is read."""
    broken = checkpoint(folder, parts, config(**weights))
    said = []
    with pytest.raises(CheckpointProblem) as told:
        check_packed_linears(broken)
    said.append(str(told.value))
    with pytest.raises(CheckpointProblem) as told:
        read_linear(broken, LINEAR)
    said.append(str(told.value))
    assert said[0] == said[1]
    assert told.value.exit_code == 3
    return told.value


@pytest.mark.parametrize("part", ["weight_packed", "weight_scale", "weight_shape"])
def test_a_part_that_is_missing_is_named(tmp_path: Path, part: str) -> None:
    problem = refused(tmp_path, {**SYM, part: None})
    assert isinstance(problem, UnknownTensor)
    assert problem.message == f"{tmp_path} lacks the tensor '{LINEAR}.{part}'"


def test_zero_points_that_are_missing_are_named(tmp_path: Path) -> None:
    problem = refused(tmp_path, {**SYM}, symmetric=False)
    assert problem.message == f"{tmp_path} lacks the tensor '{LINEAR}.weight_zero_point'"


def test_the_order_of_columns_that_is_missing_is_named(tmp_path: Path) -> None:
    problem = refused(tmp_path, {**SYM}, actorder="group")
    assert problem.message == f"{tmp_path} lacks the tensor '{LINEAR}.weight_g_idx'"


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({**ASYM}, "weight_zero_point', its config says symmetric"),
        (
            {**SYM, "weight_g_idx": torch.zeros(64, dtype=torch.int32)},
            "weight_g_idx', its config says no activation order",
        ),
    ],
)
def test_parts_that_the_config_denies_are_refused(
    tmp_path: Path, parts: dict[str, Tensor | None], said: str
) -> None:
    problem = refused(tmp_path, parts)
    assert problem.message == f"{tmp_path / 'model.safetensors'} holds '{LINEAR}.{said}"
    assert problem.next_step == "use the config that belongs to these weights"


@pytest.mark.parametrize(
    ("part", "changed", "asked"),
    [
        ("weight_packed", torch.zeros(32, 7, dtype=torch.int32), [32, 8]),
        ("weight_scale", torch.zeros(31, 2), [32, 2]),
        ("weight_scale", torch.zeros(64), [32, 0]),
        ("weight_shape", torch.tensor([32, 64, 1]), [2]),
        ("weight_zero_point", torch.zeros(4, 3, dtype=torch.int32), [4, 2]),
        ("weight_zero_point", torch.zeros(4, 2, dtype=torch.int8), [32, 2]),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(
    tmp_path: Path, part: str, changed: Tensor, asked: list[int]
) -> None:
    problem = refused(tmp_path, {**ASYM, part: changed}, symmetric=False)
    assert isinstance(problem, ShapeMismatch)
    assert f"holds '{LINEAR}.{part}' as {list(changed.shape)}" in problem.message
    assert problem.message.endswith(f"its weight_shape and weight_scale ask for {asked}")
    assert problem.next_step == AGAIN


@pytest.mark.parametrize(
    ("part", "dtype", "said"),
    [
        ("weight_packed", torch.uint8, "uint8, not as int32"),
        ("weight_scale", torch.int8, "int8, not as float16 or bfloat16 or float32"),
    ],
)
def test_parts_of_another_type_are_refused(
    tmp_path: Path, part: str, dtype: torch.dtype, said: str
) -> None:
    problem = refused(tmp_path, {**SYM, part: SYM[part].to(dtype)})
    assert problem.message.endswith(f"model.safetensors holds '{LINEAR}.{part}' as {said}")


@pytest.mark.parametrize("size", [16, 64])
def test_another_group_size_than_was_packed_is_refused(tmp_path: Path, size: int) -> None:
    problem = refused(tmp_path, {**SYM}, group_size=size)
    assert problem.message == (
        f"{tmp_path} holds '{LINEAR}.weight_scale' for 2 groups of 64 columns, its config says "
        f"group_size {size}"
    )


@pytest.mark.parametrize("group", [2, -1])
def test_a_group_that_has_no_scale_is_refused(tmp_path: Path, group: int) -> None:
    places = torch.arange(64, dtype=torch.int32) // 32
    places[5] = group
    problem = refused(tmp_path, {**SYM, "weight_g_idx": places}, actorder="group")
    assert problem.message == (
        f"{tmp_path} holds '{LINEAR}.weight_g_idx' with groups beyond the 2 that have scales"
    )
