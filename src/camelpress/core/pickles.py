"""Pickled `.bin` shards, read through torch's allowlist unpickler and never any other way.

A shard is a zip archive that compresses nothing: what a tensor is stands in one record, a pickle;
its values lie in another as in memory. So the unpickler makes tensors without values, and the
directory of the archive tells where these are.
"""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from textwrap import shorten
from typing import Any, BinaryIO, NamedTuple, TypeGuard

import torch
from torch import Tensor
from torch._weights_only_unpickler import Unpickler

from camelpress.core.errors import CheckpointProblem
from camelpress.core.progress import note
from camelpress.core.recognizer.files import unreadable

SAFE_TORCH = (2, 10)  # weights_only was broken before: CVE-2025-32434 (2.6), CVE-2026-24747 (2.10)
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # how torch before 1.6 began a file
ARCHIVE = b"PK\x03\x04"  # and since; a zip archive that begins with something else is not for torch
NESTED = ("state_dict", "model_state_dict", "model", "module")  # of training checkpoints
LOCAL = struct.Struct("<26xHH")  # what stands before a record; it ends in two lengths
REFUSALS = (  # what torch's unpickler ends in where the file is damaged or means harm
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


class Record(NamedTuple):
    """A part of an archive: where in the file it begins, and its size in bytes."""

    begin: int
    size: int


def places(path: Path) -> dict[str, tuple[Tensor, int | None]]:
    """The tensors of one shard, without their values, and where in the file these begin.

    There is no place for a tensor that is not contiguous, such as a transposed view: `read` it.

    Raises:
        CheckpointProblem: a torch that is not safe for this, a file that is not a plain
            dictionary of tensors, one that wants to run code, or one that torch of today would
            have written in another way.
    """
    found: dict[str, tuple[Tensor, int | None]] = {}
    for name, (tensor, record) in _tensors(path).items():
        begin = record.begin + int(tensor.storage_offset()) * tensor.element_size()
        found[name] = (tensor, begin if tensor.is_contiguous() else None)
    return found


@lru_cache(maxsize=2)
def read(path: Path, name: str) -> Tensor:
    """One tensor of a shard, in memory of its own, however it lies in the file.

    Raises:
        CheckpointProblem: as `places`.
    """
    tensor, record = _tensors(path)[name]
    with path.open("rb") as file:
        file.seek(record.begin)
        values = torch.frombuffer(bytearray(file.read(record.size)), dtype=tensor.dtype)
    offset = int(tensor.storage_offset())
    return values.as_strided(tensor.shape, tensor.stride(), offset).contiguous()


class _Reader(Unpickler):
    """Makes tensors of a device that has no memory; their storages know their record."""

    def __init__(self, content: bytes, records: Mapping[str, Record]) -> None:
        super().__init__(BytesIO(content), encoding="utf-8")
        self._records = records

    def persistent_load(self, key: Any) -> Any:
        """The storage that a pickle refers to; the unpickler asks for nothing else."""
        _, kind, name, _, count = key
        dtype = torch.uint8 if kind is torch.UntypedStorage else kind.dtype
        record = self._records[f"data/{name}".lower()]
        if record.size != count * dtype.itemsize:
            raise ValueError(f"record {name} has {record.size} bytes, not {count} {dtype}")
        storage = torch.UntypedStorage(record.size, device="meta")
        storage.record = record  # type: ignore[attr-defined]
        return torch.storage.TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)


def _tensors(path: Path) -> dict[str, tuple[Tensor, Record]]:
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < SAFE_TORCH:
        raise CheckpointProblem(
            f"{path} is a pickle, and torch {torch.__version__} does not read those safely",
            next_step="install torch >= 2.10, or convert the file to safetensors",
        )
    with _suspected(path), path.open("rb") as file:
        records = _records(path, file)
        told = records["data.pkl"]
        file.seek(told.begin)
        content = _Reader(file.read(told.size), records).load()
        content = _unwrapped(path, content)
        if _is_state(content):
            return {name: (tensor.detach(), _record(tensor)) for name, tensor in content.items()}
    raise CheckpointProblem(
        f"{path} is not a dictionary of tensors", next_step="give a model's state dict"
    )


def _unwrapped(path: Path, content: object) -> object:
    """The state dict inside a training checkpoint; the content itself where it is none."""
    if isinstance(content, dict) and not _is_state(content):
        keys = [key for key in NESTED if content.get(key) and _is_state(content[key])]
        if len(keys) == 1:
            note(f"{path}: its {keys[0]!r} holds the weights; the rest of it is not read")
            return content[keys[0]]
    return content


def _is_state(content: object) -> TypeGuard[dict[str, Tensor]]:
    return isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) and _is_plain(tensor)
        for name, tensor in content.items()
    )


def _is_plain(tensor: Tensor) -> bool:
    """Whether its values stand in its record as they are; a negative view holds them negated."""
    return tensor.layout is torch.strided and not tensor.is_neg()


def _record(tensor: Tensor) -> Record:
    """Where a tensor's storage lies, which has room for all of it."""
    record: Record = tensor.untyped_storage().record  # type: ignore[attr-defined]
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = int(tensor.storage_offset()) + sum((size - 1) * step for size, step in steps)
    if tensor.numel() and (last + 1) * tensor.element_size() > record.size:
        raise ValueError("a tensor goes beyond its record")
    return record


def _records(path: Path, file: BinaryIO) -> dict[str, Record]:
    """The records of an archive by their names, without the folder and in small letters.

    Raises:
        CheckpointProblem: torch of today would have written it in another way.
    """
    start = file.read(len(LEGACY))
    if start == LEGACY:
        raise _foreign(path, "it is from before torch 1.6")
    if not start.startswith(ARCHIVE):
        raise ValueError("it is not an archive of torch")
    found: dict[str, Record] = {}
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise _foreign(path, "it is compressed")
            name = entry.filename.partition("/")[2].lower()  # torch does not look at case
            if name in found:
                raise ValueError(f"it has two records {name!r}")
            with archive.open(entry) as record:  # compares what the file says of it twice
                if name == "byteorder" and record.read(6) != b"little":
                    raise _foreign(path, "it is big-endian")
            file.seek(entry.header_offset)
            names = sum(LOCAL.unpack(file.read(LOCAL.size)))
            found[name] = Record(entry.header_offset + LOCAL.size + names, entry.file_size)
    return found


@contextmanager
def _suspected(path: Path) -> Iterator[None]:
    try:
        yield
    except REFUSALS as error:
        found = re.search(r"WeightsUnpickler error: (.*?)(\. |$)", str(error), re.MULTILINE)
        reason = shorten(found[1] if found else str(error).strip().partition("\n")[0], 200)
        raise unreadable(
            path,
            f"{path} cannot be read as plain weights ({reason or type(error).__name__})",
            next_step="do not trust this file, or download it again",
        ) from error


def _foreign(path: Path, reason: str) -> CheckpointProblem:
    return CheckpointProblem(
        f"{path} is not laid out as torch does it now: {reason}",
        next_step="load it by torch.load(FILE, weights_only=True) and save that by torch.save",
    )
