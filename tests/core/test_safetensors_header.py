"""Headers of safetensors files: what the library takes, and the bounds that it does not have."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, deserialize
from safetensors.torch import load_file, save, save_file

from camelpress.core.checkpoint import shards
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.safetensors_header import DTYPE_BITS, read_safetensors_header
from camelpress.core.errors import CheckpointProblem
from camelpress.core.input_limits import MAX_HEADER_BYTES, MAX_TENSORS
from mutations import mutate_header

TENSORS = {
    "model.a.weight": torch.arange(12.0).reshape(3, 4),
    "b": torch.ones(5, dtype=torch.bfloat16),
    "empty": torch.zeros(0, 3),
    "one": torch.tensor(7),
}


def framed(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def entry(dtype: str, shape: list[Any], begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def refusal_of(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(CheckpointProblem) as raised:
        shards.read_shard_header(path)
    assert len(str(raised.value).splitlines()) == 1
    return raised.value.message


def test_the_header_is_that_of_the_library(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt", "note": "é"})
    content = path.read_bytes()
    header = read_safetensors_header(path)
    assert header.metadata == {"format": "pt", "note": "é"}
    for name, tensor in load_file(path).items():
        found = header.entries[name]
        raw = content[found.offset : found.offset + found.nbytes]
        assert raw == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        assert found.shape == tuple(tensor.shape)


def test_mutated_headers_that_the_library_refuses_are_refused(tmp_path: Path) -> None:
    seed = save(TENSORS, metadata={"format": "pt"})
    path = tmp_path / "x.safetensors"
    refused = taken = 0
    for number in range(400):
        content = mutate_header(Random(number), [seed])
        path.write_bytes(content)
        try:
            deserialize(content)
        except SafetensorError:
            refused += 1
            with pytest.raises(ValueError):
                read_safetensors_header(path)
        else:
            taken += 1
    assert refused > 100
    assert taken > 10


@pytest.mark.parametrize("dtype", sorted(DTYPE_BITS))
def test_the_size_of_every_type_is_that_of_the_library(tmp_path: Path, dtype: str) -> None:
    nbytes = 8 * DTYPE_BITS[dtype] // 8
    content = framed({"x": entry(dtype, [8], 0, nbytes)}, bytes(nbytes))
    assert deserialize(content)[0][0] == "x"
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    assert read_safetensors_header(path).entries["x"].nbytes == nbytes
    if dtype not in shards.SAFETENSORS_DTYPES:
        assert refusal_of(path, content) == f"{path} holds 'x' as {dtype}"


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"x": entry("F32", [True], 0, 4)}, "'x' has the shape [True]"),
        ({"x": entry("F32", [1.0], 0, 4)}, "'x' has the shape [1.0]"),
        ({"x": entry("F32", [0, 2**63], 0, 0)}, f"'x' has the shape [0, {2**63}]"),
        ({"x": entry("F32", [2**40, 2**40], 0, 4)}, f"'x' has the shape [{2**40}, {2**40}]"),
        ({"x": entry("F32", [1] * 33, 0, 4)}, f"'x' has the shape {[1] * 33}"),
        ({"x": entry("F32", [1], False, 4)}, "'x' has the offsets [False, 4]"),
        ({"x": entry("F32", [1], -4, 0)}, "'x' has the offsets [-4, 0]"),
        ({"x": ["F32", [1], [0, 4]]}, "'x' is no JSON object"),
        ({"x": entry("f32", [1], 0, 4)}, "'x' has the unknown type 'f32'"),
        ({"x" * 2000: entry("F32", [1], 0, 4)}, "the name of a tensor has 2,000 characters"),
        ({"__metadata__": {"a": 1}, "x": entry("F32", [1], 0, 4)}, "__metadata__ is no object"),
    ],
)
def test_what_no_tensor_has_is_refused(tmp_path: Path, header: Any, reason: str) -> None:
    path = tmp_path / "x.safetensors"
    what = refusal_of(path, framed(header, bytes(4)))
    assert what.startswith(f"{path} is not a complete safetensors file ({reason}")


def test_a_million_empty_tensors_are_refused_before_they_are_parsed(tmp_path: Path) -> None:
    many = {f"t{number}": entry("F32", [0], 0, 0) for number in range(MAX_TENSORS + 1)}
    path = tmp_path / "x.safetensors"
    assert "(more than 100,000 tensors)" in refusal_of(path, framed(many))


def test_a_header_beyond_the_limit_of_the_format_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    length = MAX_HEADER_BYTES + 1
    assert f"(a header of {length:,} bytes" in refusal_of(path, length.to_bytes(8, "little"))


def test_a_file_larger_than_memory_opens(tmp_path: Path) -> None:
    rows, columns = 2**31, 2**9  # 4 TiB, of which none is on disk
    header = {"model.x.weight": entry("F32", [rows, columns], 0, 4 * rows * columns)}
    start = framed(header)
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(start)
        file.truncate(len(start) + 4 * rows * columns)
        file.seek(-4 * columns, 2)
        file.write(torch.full((columns,), 2.5).numpy().tobytes())
    (tmp_path / "config.json").write_text("{}")
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.nbytes == 4 * rows * columns
    last = checkpoint.read_rows("model.x.weight", rows - 1, rows)
    assert torch.equal(last, torch.full((1, columns), 2.5))
