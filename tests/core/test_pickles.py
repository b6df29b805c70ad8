"""Pickled shards that ask for memory or time without end."""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch

from camelpress.core.checkpoint import pickles
from camelpress.core.errors import CheckpointProblem
from camelpress.core.input_limits import MAX_DIRECTORY_BYTES, MAX_PICKLE_BYTES


def archive(path: Path, pickled: bytes, records: int = 0) -> Path:
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("archive/data.pkl", pickled)
        made.writestr("archive/byteorder", b"little")
        for number in range(records):
            made.writestr(f"archive/data/{number}", b"")
    return path


def refusal_of(path: Path) -> str:
    with pytest.raises(CheckpointProblem) as raised:
        pickles.tensor_offsets(path)
    assert len(str(raised.value).splitlines()) == 1
    prefix = f"{path} cannot be read as plain weights ("
    assert raised.value.message.startswith(prefix)
    return raised.value.message.removeprefix(prefix)[:-1]


def call(module: str, name: str, number: int) -> bytes:
    """A pickle of protocol 2 that calls a name with a number."""
    return b"\x80\x02c%s\n%s\n" % (module.encode(), name.encode()) + b"J%s\x85R." % struct.pack(
        "<i", number
    )


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("__builtin__", "bytearray"),
        ("builtins", "bytearray"),
        ("__builtin__", "set"),
        ("_codecs", "encode"),
        ("torch", "FloatTensor"),
        ("collections", "Counter"),
        ("os", "system"),
    ],
)
def test_a_name_that_no_state_dict_needs_is_refused(tmp_path: Path, module: str, name: str) -> None:
    path = archive(tmp_path / "x.bin", call(module, name, 2**31 - 1))
    assert refusal_of(path) == f"it refers to {module}.{name}"


def test_a_pickle_beyond_the_bound_is_not_unpickled(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.bin", b"\x80\x02" + b"]" * MAX_PICKLE_BYTES + b".")
    assert refusal_of(path) == f"its pickle is larger than {MAX_PICKLE_BYTES:,} bytes"


def test_many_opcodes_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.bin", b"\x80\x02" + b"]0" * 3_000_000 + b"].")
    assert refusal_of(path) == "its pickle has more than 4,000,000 opcodes"


@pytest.mark.parametrize("opcode", [b"X", b"B", b"T"])
def test_a_length_beyond_the_pickle_is_refused(tmp_path: Path, opcode: bytes) -> None:
    path = archive(tmp_path / "x.bin", b"\x80\x02" + opcode + b"\xff\xff\xff\x7f" + b"a.")
    assert "expected" in refusal_of(path)


def test_a_directory_beyond_the_bound_is_not_read(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.bin", b"\x80\x02}.")
    content = bytearray(path.read_bytes())
    end = content.rindex(b"PK\x05\x06")
    size, offset = struct.unpack_from("<II", content, end + 12)
    filler = bytes(MAX_DIRECTORY_BYTES)
    struct.pack_into("<II", content, end + 12, size + len(filler), offset)
    path.write_bytes(content[:end] + filler + content[end:])
    assert refusal_of(path) == f"its directory has more than {MAX_DIRECTORY_BYTES:,} bytes"


def test_a_record_beyond_the_file_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(4)}, tmp_path / "x.bin")
    content = bytearray((tmp_path / "x.bin").read_bytes())
    at = content.index(b"PK\x01\x02", content.rindex(b"data/0") - 60)
    struct.pack_into("<II", content, at + 20, 2**31, 2**31)
    (tmp_path / "x.bin").write_bytes(content)
    assert refusal_of(tmp_path / "x.bin") == "its record 'data/0' goes beyond the end of the file"


def test_an_empty_tensor_that_is_not_contiguous_is_read(tmp_path: Path) -> None:
    torch.save(
        {"x": torch.zeros(3, 0).T, "y": torch.arange(6.0).reshape(2, 3).T}, tmp_path / "x.bin"
    )
    assert pickles.read_pickled_tensor(tmp_path / "x.bin", "x").shape == (0, 3)
    assert torch.equal(
        pickles.read_pickled_tensor(tmp_path / "x.bin", "y"), torch.arange(6.0).reshape(2, 3).T
    )


def test_many_references_to_one_list_take_no_memory(tmp_path: Path) -> None:
    value: object = []
    for _ in range(60):
        value = [value, value]
    path = archive(tmp_path / "x.bin", pickle.dumps(value, protocol=2))
    with pytest.raises(CheckpointProblem, match="is not a dictionary of tensors"):
        pickles.tensor_offsets(path)
