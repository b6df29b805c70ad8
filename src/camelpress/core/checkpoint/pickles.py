"""Reads pickled `.bin` shards safely, through torch's allowlist unpickler only.

A shard is an uncompressed zip archive: one record is a pickle with the dtypes and shapes of the
tensors, the other records hold their values. The unpickler creates tensors without values, and the
archive directory gives the offsets of the values.
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

SAFE_TORCH = (2, 10)  # weights_only was unsafe before: CVE-2025-32434 (2.6), CVE-2026-24747 (2.10)
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # first bytes of files before torch 1.6
ZIP_MAGIC = b"PK\x03\x04"  # first bytes of files since torch 1.6
STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "module")  # in training checkpoints
LOCAL_HEADER = struct.Struct("<26xHH")  # header of a zip record; lengths of name and extra field
UNPICKLING_ERRORS = (  # errors of torch's unpickler for a damaged or malicious file
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
ALLOWED_GLOBALS = frozenset({  # globals of a state dict, besides storages and dtypes
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
    """Position of an archive record in its file: offset and size in bytes."""

    offset: int
    size: int


def tensor_offsets(path: Path) -> dict[str, tuple[Tensor, int | None]]:
    """Returns the tensors of a shard without values, and the file offset of their values.

    The offset of a non-contiguous tensor, such as a transposed view, is None; read such a tensor
    with `read_pickled_tensor`.

    Raises:
        CheckpointProblem: The installed torch is unsafe, the file is not a plain dictionary of
            tensors, needs to run code, or has a layout other than that of current torch.
    """
    offsets: dict[str, tuple[Tensor, int | None]] = {}
    for name, (tensor, record) in _load_tensors(path).items():
        offset = record.offset + int(tensor.storage_offset()) * tensor.element_size()
        offsets[name] = (tensor, offset if tensor.is_contiguous() else None)
    return offsets


@lru_cache(maxsize=2)
def read_pickled_tensor(path: Path, name: str) -> Tensor:
    """Reads one tensor of a shard into contiguous memory, for any strides in the file.

    Raises:
        CheckpointProblem: See `tensor_offsets`.
    """
    tensor, record = _load_tensors(path)[name]
    if not tensor.numel():
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    with open_regular(path) as file:
        file.seek(record.offset)
        content = bytearray(file.read(record.size))
    with _refuse_errors(path):
        values = torch.frombuffer(content, dtype=tensor.dtype)
        offset = int(tensor.storage_offset())
        values = values.as_strided(tensor.shape, tensor.stride(), offset).contiguous()
    return values


class _MetaUnpickler(Unpickler):
    """Creates tensors on the meta device; each storage carries its archive record."""

    def __init__(self, content: bytes, records: Mapping[str, ArchiveRecord]) -> None:
        super().__init__(BytesIO(content), encoding="utf-8")
        self._records = records

    def persistent_load(self, key: Any) -> Any:
        """Returns the storage for a reference in the pickle, without values."""
        _, storage_class, name, _, count = key
        dtype = torch.uint8 if storage_class is torch.UntypedStorage else storage_class.dtype
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
        offset, size = records["data.pkl"]
        file.seek(offset)
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
    """Returns the state dict inside a training checkpoint, or else the content itself."""
    if isinstance(content, dict) and not _is_state_dict(content):
        keys = [key for key in STATE_DICT_KEYS if content.get(key) and _is_state_dict(content[key])]
        if len(keys) == 1:
            note(f"{path}: its {keys[0]!r} holds the weights; the rest of it is not read")
            return content[keys[0]]
    return content


def _require_harmless(pickled: bytes) -> None:
    """Raises ValueError if a pickle is too large or refers to a global outside the allowlist.

    torch's unpickler accepts some globals with the power to allocate any amount of memory.
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
    """Returns True for a strided tensor, unless it is a negative view of the stored values."""
    return tensor.layout is torch.strided and not tensor.is_neg()


def _storage_record(tensor: Tensor) -> ArchiveRecord:
    """Returns the archive record of a tensor; raises ValueError if the tensor exceeds it."""
    record: ArchiveRecord = tensor.untyped_storage().record  # type: ignore[attr-defined]
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = int(tensor.storage_offset()) + sum((size - 1) * step for size, step in steps)
    if tensor.numel() and (last + 1) * tensor.element_size() > record.size:
        raise ValueError("a tensor goes beyond its record")
    return record


def _read_directory(path: Path, file: BinaryIO) -> dict[str, ArchiveRecord]:
    """Reads the records of an archive by name, in lower case and without the folder.

    Raises:
        CheckpointProblem: The layout differs from that of current torch.
    """
    start = file.read(len(LEGACY_MAGIC))
    if start == LEGACY_MAGIC:
        raise _layout_problem(path, "it is from before torch 1.6")
    if not start.startswith(ZIP_MAGIC):
        raise ValueError("it is not an archive of torch")
    records: dict[str, ArchiveRecord] = {}
    end = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(_BoundedReads(file)) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise _layout_problem(path, "it is compressed")
            name = entry.filename.partition("/")[2].lower()  # torch ignores case
            if name in records:
                raise ValueError(f"it has two records {name!r}")
            with archive.open(entry) as record:  # compares both headers of the record
                if name == "byteorder" and record.read(6) != b"little":
                    raise _layout_problem(path, "it is big-endian")
            file.seek(entry.header_offset)
            field_bytes = sum(LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size)))
            offset = entry.header_offset + LOCAL_HEADER.size + field_bytes
            if offset + entry.file_size > end:
                raise ValueError(f"its record {name!r} goes beyond the end of the file")
            records[name] = ArchiveRecord(offset, entry.file_size)
    return records


class _BoundedReads:
    """A file with a bound on the bytes of a single read, for the directory of an archive."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        """Reads up to `size` bytes.

        Raises:
            ValueError: The result exceeds the bound.
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
        match = re.search(r"WeightsUnpickler error: (.*?)(\. |$)", str(error), re.MULTILINE)
        reason = shorten(match[1] if match else str(error).strip().partition("\n")[0], 200)
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
