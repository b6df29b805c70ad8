"""Whole models of other tools are read; where they are damaged or mislabelled, they are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import damage
import drawn
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import CheckpointProblem, ShapeMismatch, UnknownTensor
from camelpress.core.packing.linear_layers import check_packed_linears, read_linear
from camelpress.inference.model.streamed_model import StreamedModel
from camelpress.reporting.checkpoint_summary import describe_checkpoint

Q = "model.layers.0.self_attn.q_proj"
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False}
AGAIN = "download or quantize the checkpoint again"


def opened(folder: Path) -> StreamedModel:
    return StreamedModel(Checkpoint.open(folder), device=torch.device("cpu"), dtype=torch.float32)


def gptq_model(
    folder: Path, base: Path, *, version: str = "gptq", without: str = "", **common: Any
) -> dict[str, drawn.Drawn]:
    """A model of packed layers in one version of the format; `without` one of the parts."""
    told = GPTQ | {
        "checkpoint_format": version,
        "bits": common.get("bits", 4),
        "group_size": common.get("group_size", 32),
        "sym": common.get("sym", True),
        "desc_act": common.get("any_order", False),
    }

    def lay(name: str, layer: drawn.Drawn) -> dict[str, Tensor]:
        parts = drawn.gptq(layer, version)
        return {part: tensor for part, tensor in parts.items() if part != without}

    return drawn.write_model(folder, base, told, lay, **common)


@pytest.fixture(scope="module")
def packed(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A symmetric model of version 1."""
    folder = tmp_path_factory.mktemp("packed") / "model"
    gptq_model(folder, base)
    return folder


# --- what is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize(
    "common",
    [
        {},
        {"bits": 2},
        {"bits": 3, "sym": False},
        {"bits": 8},
        {"group_size": -1},
        {"sym": False, "any_order": True},
        {"scales": torch.float32},
    ],
    ids=str,
)
def test_a_model_is_read_layer_by_layer(
    base: Path, tmp_path: Path, version: str, common: dict[str, Any]
) -> None:
    layers = gptq_model(tmp_path / "model", base, version=version, **common)
    model = opened(tmp_path / "model")
    for number in range(2):
        for name, weight in model.read_block_weights(number).items():
            layer = layers.get(f"model.layers.{number}.{name}".removesuffix(".weight"))
            if layer is not None:
                assert torch.equal(weight, layer.weight.float()), name
    assert (
        describe_checkpoint(model.checkpoint)["parameters"]
        == describe_checkpoint(Checkpoint.open(base))["parameters"]
    )


@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    version=st.sampled_from(["gptq", "gptq_v2"]),
    sym=st.booleans(),
    any_order=st.booleans(),
    groups=st.integers(1, 3),
    odd=st.integers(0, 1),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=40)
def test_a_layer_is_read_as_the_twin_laid_it_down(
    tmp_path_factory: pytest.TempPathFactory,
    bits: int,
    version: str,
    sym: bool,
    any_order: bool,
    groups: int,
    odd: int,
    seed: int,
) -> None:
    size = 32 + 16 * odd  # the last group may be shorter
    layer = drawn.draw(
        32, 32 * groups, bits=bits, group_size=size, sym=sym, any_order=any_order, seed=seed
    )
    parts = drawn.gptq(layer, version)
    if not any_order:
        del parts["g_idx"]
    folder = tmp_path_factory.mktemp("one")
    save_file({f"{Q}.{name}": part for name, part in parts.items()}, folder / "model.safetensors")
    told = GPTQ | {"bits": bits, "group_size": size, "sym": sym, "desc_act": any_order}
    config = {"quantization_config": told | {"checkpoint_format": version}}
    (folder / "config.json").write_text(json.dumps(config))
    found = read_linear(Checkpoint.open(folder), Q)
    assert torch.equal(found.double(), layer.weight)


def test_files_are_found_by_the_name_that_autogptq_gives_them(packed: Path, tmp_path: Path) -> None:
    copy = damage.copied(packed, tmp_path / "copy")
    (copy / "model.safetensors").rename(copy / "gptq_model-4bit-32g.safetensors")
    assert Checkpoint.open(copy).tensors.keys() == Checkpoint.open(packed).tensors.keys()


def test_shards_are_found_by_the_name_that_autogptq_gives_them(
    packed: Path, tmp_path: Path
) -> None:
    copy = damage.sharded(packed, tmp_path / "copy")
    (copy / damage.INDEX).rename(copy / "gptq_model-4bit-32g.safetensors.index.json")
    assert Checkpoint.open(copy).tensors.keys() == Checkpoint.open(packed).tensors.keys()


def test_two_models_in_one_folder_are_not_chosen_from(packed: Path, tmp_path: Path) -> None:
    copy = damage.copied(packed, tmp_path / "copy")
    (copy / "model.safetensors").rename(copy / "gptq_model-4bit-32g.safetensors")
    (copy / "gptq_model-8bit-32g.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointProblem) as told:
        Checkpoint.open(copy)
    assert told.value.message == (
        f"{copy} holds several models: gptq_model-4bit-32g.safetensors, "
        "gptq_model-8bit-32g.safetensors"
    )


def test_biases_of_zeros_are_no_biases(packed: Path, tmp_path: Path) -> None:
    zeros = {f"{name}.bias": torch.zeros(64) for name in drawn.names()}
    folder = damage.with_tensors(packed, tmp_path / "copy", zeros)
    assert opened(folder).block_count == 2


# --- what is refused, before a code is read -------------------------------------------------------


def said(folder: Path) -> CheckpointProblem:
    """What `inspect` and `validate` say of a checkpoint: the same, in one line."""
    looks: tuple[Callable[[], Any], ...] = (
        lambda: describe_checkpoint(Checkpoint.open(folder)),
        lambda: opened(folder),
    )
    problems = []
    for look in looks:
        with pytest.raises(CheckpointProblem) as told:
            look()
        problems.append(told.value)
    assert str(problems[0]) == str(problems[1])
    assert len(str(problems[0]).splitlines()) == 1
    assert problems[0].exit_code == 3
    return problems[0]


@pytest.mark.parametrize(
    ("version", "other", "stored"), [("gptq", "gptq_v2", 7), ("gptq_v2", "gptq", 8)]
)
def test_one_version_labelled_as_the_other_is_noticed(
    base: Path, tmp_path: Path, version: str, other: str, stored: int
) -> None:
    gptq_model(tmp_path / "model", base, version=version)
    told = GPTQ | {"checkpoint_format": other}
    broken = damage.with_config(tmp_path / "model", tmp_path / "broken", quantization_config=told)
    problem = said(broken)
    assert problem.message == (
        f"{broken / 'model.safetensors'} holds {stored} in every place of '{Q}.qzeros', as "
        f"{version} does, its config says {other}"
    )
    assert problem.next_step == f'say "checkpoint_format": "{version}" in its config.json'


@pytest.mark.parametrize(("bits", "stored"), [(2, 2), (3, 4), (8, 128)])
def test_the_label_is_checked_for_other_widths(
    base: Path, tmp_path: Path, bits: int, stored: int
) -> None:
    gptq_model(tmp_path / "model", base, version="gptq_v2", bits=bits)
    told = GPTQ | {"bits": bits}
    broken = damage.with_config(tmp_path / "model", tmp_path / "broken", quantization_config=told)
    assert f"holds {stored} in every place of '{Q}.qzeros', as gptq_v2 does" in said(broken).message


def test_zero_points_that_a_symmetric_config_denies_are_refused(base: Path, tmp_path: Path) -> None:
    gptq_model(tmp_path / "model", base, sym=False)
    broken = damage.with_config(tmp_path / "model", tmp_path / "broken", quantization_config=GPTQ)
    assert said(broken).message == (
        f"{broken / 'model.safetensors'} holds zero points other than 8 in '{Q}.qzeros', its "
        "config says that it is symmetric"
    )


@pytest.mark.parametrize("part", ["qweight", "qzeros", "scales"])
def test_a_part_that_is_missing_is_named(packed: Path, tmp_path: Path, part: str) -> None:
    broken = damage.with_tensors(packed, tmp_path / "broken", {f"{Q}.{part}": None})
    problem = said(broken)
    assert isinstance(problem, UnknownTensor)
    assert problem.message == f"{broken} lacks the tensor '{Q}.{part}'"


def test_a_layer_that_is_missing_is_named(packed: Path, tmp_path: Path) -> None:
    gone = {f"{Q}.{part}": None for part in ("qweight", "qzeros", "scales", "g_idx")}
    broken = damage.with_tensors(packed, tmp_path / "broken", gone)
    problem = said(broken)
    assert problem.message == f"{broken} lacks '{Q}', packed and plain"
    assert "would fill it with noise" in problem.next_step


def test_the_order_of_columns_that_is_missing_is_named(base: Path, tmp_path: Path) -> None:
    gptq_model(tmp_path / "model", base, any_order=True, without="g_idx")
    assert said(tmp_path / "model").message == (
        f"{tmp_path / 'model'} has desc_act, but lacks '{Q}.g_idx', which tells the order"
    )


@pytest.mark.parametrize(
    ("part", "dtype", "taken"),
    [
        ("scales", torch.bfloat16, "float16 or float32"),
        ("qweight", torch.int16, "int32"),
        ("qzeros", torch.int64, "int32"),
    ],
)
def test_parts_of_another_type_are_refused(
    packed: Path, tmp_path: Path, part: str, dtype: torch.dtype, taken: str
) -> None:
    tensor = load_file(packed / "model.safetensors")[f"{Q}.{part}"]
    broken = damage.with_tensors(packed, tmp_path / "broken", {f"{Q}.{part}": tensor.to(dtype)})
    word = str(dtype).removeprefix("torch.")
    assert said(broken).message == (
        f"{broken / 'model.safetensors'} holds '{Q}.{part}' as {word}, not as {taken}"
    )


@pytest.mark.parametrize("size", [16, 64, -1])
def test_another_group_size_than_was_packed_is_refused(
    packed: Path, tmp_path: Path, size: int
) -> None:
    told = GPTQ | {"group_size": size}
    broken = damage.with_config(packed, tmp_path / "broken", quantization_config=told)
    problem = said(broken)
    assert isinstance(problem, ShapeMismatch)
    assert problem.message == (
        f"{broken} holds '{Q}.scales' for 2 groups of 64 columns, its config says group_size {size}"
    )


def test_a_layer_packed_and_plain_at_once_is_refused(packed: Path, tmp_path: Path) -> None:
    plain = {f"{Q}.weight": torch.zeros(64, 64)}
    broken = damage.with_tensors(packed, tmp_path / "broken", plain)
    assert said(broken).message == f"{broken} holds '{Q}' packed, and its weight is plain"


def test_a_packed_layer_that_the_config_calls_plain_is_refused(
    packed: Path, tmp_path: Path
) -> None:
    told = GPTQ | {"dynamic": {"-:.*q_proj": {}}}
    broken = damage.with_config(packed, tmp_path / "broken", quantization_config=told)
    assert said(broken).message == (
        f"{broken} holds '{Q}' packed, and its quantization_config says that it is plain"
    )


def test_an_index_that_lists_what_is_not_there_is_refused(packed: Path, tmp_path: Path) -> None:
    broken = damage.sharded(packed, tmp_path / "broken")
    damage.move(broken, **{f"{Q}.bias": "model-1.safetensors"})
    assert said(broken).message == (
        f"{broken / 'model-1.safetensors'} lacks '{Q}.bias', which the index lists there"
    )


def test_a_tensor_that_the_index_does_not_list_is_refused(packed: Path, tmp_path: Path) -> None:
    broken = damage.sharded(packed, tmp_path / "broken")
    index = json.loads((broken / damage.INDEX).read_text())
    del index["weight_map"][f"{Q}.qweight"]
    (broken / damage.INDEX).write_text(json.dumps(index))
    assert said(broken).message == (
        f"{broken / 'model-1.safetensors'} holds '{Q}.qweight', which the index places in no file"
    )


def test_a_bias_that_the_model_has_no_place_for_is_refused(packed: Path, tmp_path: Path) -> None:
    folder = damage.with_tensors(packed, tmp_path / "copy", {f"{Q}.bias": torch.ones(64)})
    with pytest.raises(CheckpointProblem) as told:
        opened(folder)
    assert told.value.message == (
        f"{folder} holds '{Q}.bias', which is not zero, and its config.json describes a model "
        "without it"
    )


def test_nothing_is_packed_in_a_plain_model(base: Path) -> None:
    assert check_packed_linears(Checkpoint.open(base)) == {}
