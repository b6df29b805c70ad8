"""Pickled `.bin` shards, read through torch's allowlist unpickler and never any other way.

A shard is a zip archive that compresses nothing: what a tensor is stands in one record, a pickle;
its values lie in another as in memory. So the unpickler makes tensors without values, and the
directory of the archive tells where these are.
"""

from __future__ import annotations

import os
import pickle
import pickletools
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
from camelpress.core.files.file_recognizer import unreadable_file_problem
from camelpress.core.files.regular_files import open_regular
from camelpress.core.input_limits import MAX_DIRECTORY_BYTES, MAX_PICKLE_BYTES, MAX_PICKLE_OPCODES
from camelpress.core.progress import note

SAFE_TORCH = (2, 10)  # weights_only was broken before: CVE-2025-32434 (2.6), CVE-2026-24747 (2.10)
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # how torch before 1.6 began a file
ZIP_MAGIC = (
    b"PK\x03\x04"  # and since; a zip archive that begins with something else is not for torch
)
STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "module")  # of training checkpoints
LOCAL_HEADER = struct.Struct("<26xHH")  # what stands before a record; it ends in two lengths
UNPICKLING_ERRORS = (  # what torch's unpickler ends in where the file is damaged or means harm
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


# fmt: off
ALLOWED_GLOBALS = frozenset({  # names that a state dict needs, beside those of storages and dtypes
    "collections OrderedDict",
    "torch Size",
    "torch Tensor",
    "torch device",
    "torch._tensor _rebuild_from_type_v2",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_parameter_with_state",
    "torch._utils _rebuild_sparse_tensor",
    "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_tensor_v3",
    "torch.nn.parameter Parameter",
    "torch.serialization _get_layout",
    "torch.storage TypedStorage",
    "torch.storage UntypedStorage",
})
# fmt: on
STORAGE_OR_DTYPE = re.compile(r"torch ([A-Z][A-Za-z0-9]{2,20}Storage|[a-z]+[a-z0-9_]{1,20})")


class ArchiveRecord(NamedTuple):
    """A part of an archive: where in the file it begins, and its size in bytes."""

    begin: int
    size: int


def tensor_offsets(path: Path) -> dict[str, tuple[Tensor, int | None]]:
    """The tensors of one shard, without their values, and where in the file these begin.

    There is no place for a tensor that is not contiguous, such as a transposed view: `read` it.

    Raises:
        CheckpointProblem: a torch that is not safe for this, a file that is not a plain
            dictionary of tensors, one that wants to run code, or one that torch of today would
            have written in another way.
    """
    found: dict[str, tuple[Tensor, int | None]] = {}
    for name, (tensor, record) in _load_tensors(path).items():
        begin = record.begin + int(tensor.storage_offset()) * tensor.element_size()
        found[name] = (tensor, begin if tensor.is_contiguous() else None)
    return found


@lru_cache(maxsize=2)
def read_pickled_tensor(path: Path, name: str) -> Tensor:
    """One tensor of a shard, in memory of its own, however it lies in the file.

    Raises:
        CheckpointProblem: as `places`.
    """
    tensor, record = _load_tensors(path)[name]
    if not tensor.numel():
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    with open_regular(path) as file:
        file.seek(record.begin)
        content = bytearray(file.read(record.size))
    with _refuse_errors(path):
        values = torch.frombuffer(content, dtype=tensor.dtype)
        offset = int(tensor.storage_offset())
        values = values.as_strided(tensor.shape, tensor.stride(), offset).contiguous()
    return values


class _MetaUnpickler(Unpickler):
    """Makes tensors of a device that has no memory; their storages know their record."""

    def __init__(self, content: bytes, records: Mapping[str, ArchiveRecord]) -> None:
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


def _load_tensors(path: Path) -> dict[str, tuple[Tensor, ArchiveRecord]]:
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < SAFE_TORCH:
        raise CheckpointProblem(
            f"{path} is a pickle, and torch {torch.__version__} does not read those safely",
            next_step="install torch >= 2.10, or convert the file to safetensors",
        )
    with _refuse_errors(path), open_regular(path) as file:
        records = _read_directory(path, file)
        begin, size = records["data.pkl"]
        file.seek(begin)
        pickled = file.read(min(size, MAX_PICKLE_BYTES + 1))
        _require_harmless(pickled)
        content = _MetaUnpickler(pickled, records).load()
        content = _find_state_dict(path, content)
        if _is_state_dict(content):
            return {
                name: (tensor.detach(), _storage_record(tensor)) for name, tensor in content.items()
            }
    raise CheckpointProblem(
        f"{path} is not a dictionary of tensors", next_step="give a model's state dict"
    )


def _find_state_dict(path: Path, content: object) -> object:
    """The state dict inside a training checkpoint; the content itself where it is none."""
    if isinstance(content, dict) and not _is_state_dict(content):
        keys = [key for key in STATE_DICT_KEYS if content.get(key) and _is_state_dict(content[key])]
        if len(keys) == 1:
            note(f"{path}: its {keys[0]!r} holds the weights; the rest of it is not read")
            return content[keys[0]]
    return content


def _require_harmless(pickled: bytes) -> None:
    """Raises ValueError where a pickle is too large, or names what no state dict needs.

    torch's unpickler lets some names through that allocate as much memory as a number asks for.
    """
    if len(pickled) > MAX_PICKLE_BYTES:
        raise ValueError(f"its pickle is larger than {MAX_PICKLE_BYTES:,} bytes")
    for number, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
        if number > MAX_PICKLE_OPCODES:
            raise ValueError(f"its pickle has more than {MAX_PICKLE_OPCODES:,} opcodes")
        name = str(argument)
        if (
            opcode.name == "GLOBAL"
            and name not in ALLOWED_GLOBALS
            and not STORAGE_OR_DTYPE.fullmatch(name)
        ):
            raise ValueError(f"it refers to {name.replace(' ', '.')}")


def _is_state_dict(content: object) -> TypeGuard[dict[str, Tensor]]:
    return isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) and _is_plain(tensor)
        for name, tensor in content.items()
    )


def _is_plain(tensor: Tensor) -> bool:
    """Whether its values stand in its record as they are; a negative view holds them negated."""
    return tensor.layout is torch.strided and not tensor.is_neg()


def _storage_record(tensor: Tensor) -> ArchiveRecord:
    """Where a tensor's storage lies, which has room for all of it."""
    record: ArchiveRecord = tensor.untyped_storage().record  # type: ignore[attr-defined]
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = int(tensor.storage_offset()) + sum((size - 1) * step for size, step in steps)
    if tensor.numel() and (last + 1) * tensor.element_size() > record.size:
        raise ValueError("a tensor goes beyond its record")
    return record


def _read_directory(path: Path, file: BinaryIO) -> dict[str, ArchiveRecord]:
    """The records of an archive by their names, without the folder and in small letters.

    Raises:
        CheckpointProblem: torch of today would have written it in another way.
    """
    start = file.read(len(LEGACY_MAGIC))
    if start == LEGACY_MAGIC:
        raise _layout_problem(path, "it is from before torch 1.6")
    if not start.startswith(ZIP_MAGIC):
        raise ValueError("it is not an archive of torch")
    found: dict[str, ArchiveRecord] = {}
    end = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(_BoundedReads(file)) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise _layout_problem(path, "it is compressed")
            name = entry.filename.partition("/")[2].lower()  # torch does not look at case
            if name in found:
                raise ValueError(f"it has two records {name!r}")
            with archive.open(entry) as record:  # compares what the file says of it twice
                if name == "byteorder" and record.read(6) != b"little":
                    raise _layout_problem(path, "it is big-endian")
            file.seek(entry.header_offset)
            names = sum(LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size)))
            begin = entry.header_offset + LOCAL_HEADER.size + names
            if begin + entry.file_size > end:
                raise ValueError(f"its record {name!r} goes beyond the end of the file")
            found[name] = ArchiveRecord(begin, entry.file_size)
    return found


class _BoundedReads:
    """A file from which nobody reads more at a time than the directory of an archive may have."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        """Reads like a file.

        Raises:
            ValueError: more is asked for.
        """
        bound = MAX_DIRECTORY_BYTES + 1
        content = self._file.read(bound if size < 0 else min(size, bound))
        if len(content) > MAX_DIRECTORY_BYTES:
            raise ValueError(f"its directory has more than {MAX_DIRECTORY_BYTES:,} bytes")
        return content


@contextmanager
def _refuse_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except UNPICKLING_ERRORS as error:
        found = re.search(r"WeightsUnpickler error: (.*?)(\. |$)", str(error), re.MULTILINE)
        reason = shorten(found[1] if found else str(error).strip().partition("\n")[0], 200)
        raise unreadable_file_problem(
            path,
            f"{path} cannot be read as plain weights ({reason or type(error).__name__})",
            next_step="do not trust this file, or download it again",
        ) from error


def _layout_problem(path: Path, reason: str) -> CheckpointProblem:
    return CheckpointProblem(
        f"{path} is not laid out as torch does it now: {reason}",
        next_step="load it by torch.load(FILE, weights_only=True) and save that by torch.save",
    )
