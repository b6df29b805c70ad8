"""The streaming writer gives the bytes of the safetensors library, from any number of threads."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.checkpoint_writer import CheckpointWriter, TensorSpec, tensor_bytes
from camelpress.core.checkpoint.shards import SAFETENSORS_DTYPES
from camelpress.core.errors import OutputProblem, ShapeMismatch, UnknownTensor
from camelpress.core.files.json_files import write_json

Tensors = dict[str, Tensor]

ONE_FILE = 10**9
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(
    lambda name: name != "__metadata__"
)
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@st.composite
def tensors_of_any_kind(draw: st.DrawFn) -> Tensors:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    drawn = {}
    for name in draw(st.lists(NAMES, min_size=1, max_size=6, unique=True)):
        dtype = draw(st.sampled_from(list(SAFETENSORS_DTYPES.values())))
        shape = draw(SHAPES)
        size = torch.Size(shape).numel() * dtype.itemsize
        limit = 2 if dtype is torch.bool else 256
        raw = torch.randint(0, limit, (size,), dtype=torch.uint8, generator=generator)
        drawn[name] = raw.view(dtype).reshape(shape)
    return drawn


def slots_of(tensors: Tensors) -> dict[str, TensorSpec]:
    return {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def write(
    folder: Path, tensors: Tensors, *, shard_bytes: int, order: list[str] | None = None
) -> None:
    with CheckpointWriter(folder, slots_of(tensors), shard_bytes=shard_bytes) as writer:
        for name in order or tensors:
            writer.write_tensor(name, tensors[name])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def cleared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """A folder that is empty whenever it is asked for."""
    folder = tmp_path_factory.mktemp("writer") / "out"

    def cleared() -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    return cleared


# --- bytes --------------------------------------------------------------------------------------


@given(tensors_of_any_kind())
@settings(deadline=None, max_examples=100)
def test_bytes_are_those_of_the_safetensors_library(
    cleared: Callable[[], Path], tensors: Tensors
) -> None:
    folder = cleared()
    write(folder, tensors, shard_bytes=ONE_FILE)
    save_file(tensors, folder / "expected", metadata={"format": "pt"})
    assert (folder / "model.safetensors").read_bytes() == (folder / "expected").read_bytes()


def test_every_dtype_stands_where_the_library_puts_it(tmp_path: Path) -> None:
    tensors = {str(dtype): torch.ones(3, dtype=dtype) for dtype in SAFETENSORS_DTYPES.values()}
    write(tmp_path, tensors, shard_bytes=ONE_FILE)
    save_file(tensors, tmp_path / "expected", metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "expected").read_bytes()


@given(tensors_of_any_kind(), st.integers(0, 9), st.integers(1, 200))
@settings(deadline=None, max_examples=50)
def test_the_order_of_arrival_does_not_matter(
    cleared: Callable[[], Path], tensors: Tensors, seed: int, shard_bytes: int
) -> None:
    order = list(tensors)
    random.Random(seed).shuffle(order)
    write(cleared(), tensors, shard_bytes=shard_bytes)
    folder = cleared()
    write(folder, tensors, shard_bytes=shard_bytes)
    expected = contents(folder)
    folder = cleared()
    write(folder, tensors, shard_bytes=shard_bytes, order=order)
    assert contents(folder) == expected


@given(tensors_of_any_kind(), st.integers(0, 9), st.integers(1, 200), st.integers(1, 40))
@settings(deadline=None, max_examples=50)
def test_pieces_from_many_threads_in_any_order_do_not_matter(
    cleared: Callable[[], Path], tensors: Tensors, seed: int, shard_bytes: int, step: int
) -> None:
    folder = cleared()
    write(folder, tensors, shard_bytes=shard_bytes)
    expected = contents(folder)
    folder = cleared()
    content = {name: tensor_bytes(tensor) for name, tensor in tensors.items()}
    pieces = [(name, begin) for name in tensors for begin in range(0, len(content[name]), step)]
    random.Random(seed).shuffle(pieces)
    with (
        CheckpointWriter(folder, slots_of(tensors), shard_bytes=shard_bytes) as writer,
        ThreadPoolExecutor(8) as pool,
    ):

        def put(piece: tuple[str, int]) -> None:
            name, begin = piece
            writer.write_bytes(name, begin, content[name][begin : begin + step])

        list(pool.map(put, pieces))
        assert {name: writer.tensor_digest(name) for name in tensors} == {
            name: hashlib.sha256(content[name]).hexdigest() for name in tensors
        }
        list(pool.map(writer.finish_tensor, tensors))
    assert contents(folder) == expected


def test_what_the_header_says_besides_is_read_by_the_library(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(2), "b": torch.zeros(3)}
    said = {"camelpress.rule": "mean", "quotes and such": '"\\ \u00e9\u6f22\U0001f40b\n'}
    with CheckpointWriter(tmp_path, slots_of(tensors), shard_bytes=8, metadata=said) as writer:
        for name, tensor in tensors.items():
            writer.write_tensor(name, tensor)
    for number in (1, 2):
        shard = tmp_path / f"model-{number:05}-of-00002.safetensors"
        with safe_open(shard, framework="pt") as file:
            assert file.metadata() == {"format": "pt", **said}


def test_no_tensors_at_all_are_a_file_of_the_library(tmp_path: Path) -> None:
    write(tmp_path, {}, shard_bytes=ONE_FILE)
    save_file({}, tmp_path / "expected", metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "expected").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_tensors_without_values_have_a_place(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(0, 3), "b": torch.ones(3, 0), "c": torch.ones(2), "d": torch.ones(0)}
    write(tmp_path, tensors, shard_bytes=4)
    found: Tensors = {}
    for shard in tmp_path.glob("*.safetensors"):
        found |= load_file(shard)
    assert {name: found[name].shape for name in tensors} == {
        name: tensor.shape for name, tensor in tensors.items()
    }


def test_views_are_written_by_value(tmp_path: Path) -> None:
    matrix = torch.arange(6.0).reshape(2, 3)
    write(tmp_path, {"turned": matrix.T, "row": matrix[1]}, shard_bytes=ONE_FILE)
    found = load_file(tmp_path / "model.safetensors")
    assert found["turned"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert found["row"].tolist() == [3, 4, 5]


# --- shards -------------------------------------------------------------------------------------


def test_a_shard_closes_before_it_grows_beyond_its_limit(tmp_path: Path) -> None:
    write(tmp_path, {name: torch.ones(10, dtype=torch.uint8) for name in "abcde"}, shard_bytes=20)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index == {
        "metadata": {"total_size": 50},
        "weight_map": {
            name: f"model-0000{number}-of-00003.safetensors"
            for name, number in zip("abcde", "11223", strict=True)
        },
    }
    assert sorted(load_file(tmp_path / "model-00002-of-00003.safetensors")) == ["c", "d"]


def test_a_tensor_larger_than_a_shard_gets_one_of_its_own(tmp_path: Path) -> None:
    sizes = {"small": 1, "large": 50, "tail": 1}
    write(tmp_path, {name: torch.ones(size) for name, size in sizes.items()}, shard_bytes=8)
    write_json(tmp_path / "config.json", {})
    tensors = Checkpoint.open(tmp_path).tensors
    assert [tensors[name].shard[6:11] for name in sizes] == ["00001", "00002", "00003"]


def test_one_shard_needs_no_index(tmp_path: Path) -> None:
    write(tmp_path, {"a": torch.ones(2)}, shard_bytes=ONE_FILE)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_transformers_loads_a_sharded_model(tmp_path: Path, base: Path) -> None:
    tensors = load_file(base / "model.safetensors")
    write(tmp_path, tensors, shard_bytes=50_000)
    shutil.copyfile(base / "config.json", tmp_path / "config.json")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    loaded = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float16).state_dict()
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


# --- what does not belong -----------------------------------------------------------------------


@pytest.fixture
def writer(tmp_path: Path) -> CheckpointWriter:
    slots = {name: TensorSpec(torch.float32, (2,)) for name in ("a", "c", "b")}
    return CheckpointWriter(tmp_path, slots)


def test_a_tensor_is_written_only_if_announced(writer: CheckpointWriter) -> None:
    with pytest.raises(UnknownTensor) as told, writer:
        writer.write_tensor("d", torch.ones(2))
    assert str(told.value) == "'d' was not announced; announce each tensor once"


def test_a_tensor_is_written_only_once(writer: CheckpointWriter) -> None:
    with pytest.raises(UnknownTensor) as told, writer:
        writer.write_tensor("a", torch.ones(2))
        writer.write_tensor("a", torch.ones(2))
    assert str(told.value) == "'a' was already written; announce each tensor once"


@pytest.mark.parametrize("tensor", [torch.ones(3), torch.ones(2, 1), torch.ones(2).half()])
def test_another_shape_or_dtype_than_announced_is_refused(
    writer: CheckpointWriter, tensor: Tensor
) -> None:
    with pytest.raises(ShapeMismatch) as told, writer:
        writer.write_tensor("a", tensor)
    assert told.value.message == (
        f"'a' is {tensor.dtype} {tuple(tensor.shape)}, but was announced as torch.float32 (2,)"
    )
    assert told.value.next_step == "announce the tensor that is written"


@pytest.mark.parametrize(("offset", "size"), [(0, 9), (8, 1), (7, 2), (9, 0), (-1, 1), (-8, 8)])
def test_a_piece_beside_its_tensor_is_refused(
    writer: CheckpointWriter, tmp_path: Path, offset: int, size: int
) -> None:
    before = contents(tmp_path)
    with pytest.raises(ShapeMismatch) as told, writer:
        writer.write_bytes("b", offset, memoryview(b"x" * size))
    assert told.value.message == (
        f"'b' has 8 bytes, which cannot take {size} bytes from byte {offset} on"
    )
    assert told.value.next_step == "announce the tensor that is written"
    assert contents(tmp_path) == before


def test_an_index_does_not_outlive_its_shards(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(2), "b": torch.ones(2)}
    write(tmp_path, tensors, shard_bytes=8)
    with CheckpointWriter(tmp_path, slots_of(tensors), shard_bytes=8) as again:
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            f"model-0000{number}-of-00002.safetensors.partial" for number in (1, 2)
        ]
        again.finish_tensor("b")
        assert not list(tmp_path.glob("*index*"))
        again.finish_tensor("a")
    assert len(list(tmp_path.iterdir())) == 3


def test_a_tensor_that_never_came_is_missed(writer: CheckpointWriter) -> None:
    with pytest.raises(UnknownTensor) as told, writer:
        writer.write_tensor("a", torch.ones(2))
    assert str(told.value) == "2 tensors were never written, 'b' first; run the stage again"


def test_too_little_space_is_noticed_before_the_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000_000))
    with pytest.raises(OutputProblem) as told:
        CheckpointWriter(tmp_path, {"a": TensorSpec(torch.float64, (5_000_000,))})
    assert (
        told.value.message
        == f"{tmp_path.parent} has 10,000,000 bytes free, the output needs 40,000,000"
    )
    assert told.value.next_step == "free some space or name another output"
    assert list(tmp_path.iterdir()) == []
