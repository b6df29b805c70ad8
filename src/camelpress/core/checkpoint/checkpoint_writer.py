"""Sharded safetensors, streamed: every byte has its place before the first tensor is there.

The header of a safetensors file needs only names, types and shapes. So all files are laid out
first, tensors arrive in pieces and in any order and go straight to their place, and no more than
the pieces are ever in memory. The same tensors give the same bytes, whatever the order.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import MappingProxyType, TracebackType

import torch
from torch import Tensor

from camelpress.core.checkpoint.shards import INDEX_NAMES, SAFETENSORS_DTYPES, SINGLE_FILE_NAMES
from camelpress.core.errors import OutputProblem, ShapeMismatch, UnknownTensor
from camelpress.core.files.json_files import write_json

SHARD_BYTES = 4 * 10**9
WEIGHT_FILE_PATTERNS = (
    SINGLE_FILE_NAMES[0],
    "model-*-of-*.safetensors",
    INDEX_NAMES[0],
)  # all names that are written
HASH_CHUNK_BYTES = 2**17  # bytes that are hashed at a time
DTYPE_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
DTYPE_ORDER = {dtype: rank for rank, dtype in enumerate(SAFETENSORS_DTYPES.values())}


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that is going to be written."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


class CheckpointWriter:
    """Writes the tensors of one checkpoint into an existing folder, from any number of threads.

    A shard has its own name only once all of its tensors are there; until then it is
    `NAME.partial`. What a writer before left of the same layout is taken over: ask `digest` what
    stands in a tensor's place, and tell with `done` that it is right.

    Args:
        folder: where the shards go; give a staged folder, so that half a model has no name.
        slots: every tensor that will come; shards are filled in this order.
        shard_bytes: a shard closes before it would grow beyond this.
        metadata: what the headers say besides `format`.
    Raises:
        OutputProblem: there is not enough space for all of them.
    """

    def __init__(
        self,
        folder: Path,
        slots: Mapping[str, TensorSpec],
        *,
        shard_bytes: int = SHARD_BYTES,
        metadata: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._folder = folder
        self._slots = dict(slots)
        self._lock = Lock()
        self._places: dict[str, tuple[str, int]] = {}
        self._missing: dict[str, set[str]] = {}
        self._files: dict[str, int] = {}
        shards = _plan_shards(slots, shard_bytes)
        _require_space(folder, sum(slot.nbytes for slot in slots.values()))
        (folder / INDEX_NAMES[0]).unlink(missing_ok=True)
        _remove_stale_shards(folder, shards)
        for shard, content in shards.items():
            header, offsets = safetensors_layout(content, metadata)
            self._places |= {name: (shard, offset) for name, offset in offsets.items()}
            self._missing[shard] = set(content)
            size = len(header) + sum(slot.nbytes for slot in content.values())
            _prepare_partial(folder / shard, header, size)
            if not content:
                self._complete(shard)

    def write_tensor(self, name: str, tensor: Tensor) -> None:
        """Write one whole tensor to its place.

        Raises:
            UnknownTensor: it was not announced, or came before.
            ShapeMismatch: its shape or dtype is not the announced one.
        """
        slot = self._require_spec(name)
        if (tensor.dtype, tuple(tensor.shape)) != (slot.dtype, slot.shape):
            raise ShapeMismatch(
                f"{name!r} is {tensor.dtype} {tuple(tensor.shape)}, announced was {slot.dtype} "
                f"{slot.shape}",
                next_step="announce what is written",
            )
        self.write_bytes(name, 0, tensor_bytes(tensor))
        self.finish_tensor(name)

    def write_bytes(self, name: str, offset: int, content: memoryview) -> None:
        """Write some bytes of a tensor, `offset` bytes after its first one.

        Raises:
            UnknownTensor: it was not announced, or is complete.
            ShapeMismatch: they do not fit between its first byte and its last.
        """
        slot = self._require_spec(name)
        if not 0 <= offset <= slot.nbytes - len(content):
            raise ShapeMismatch(
                f"{name!r} has {slot.nbytes} bytes, to be written are {len(content)} from byte "
                f"{offset} on",
                next_step="announce what is written",
            )
        shard, begin = self._places[name]
        file = self._open_shard(shard)
        while len(content):
            written = os.pwrite(file, content, begin + offset)
            content, offset = content[written:], offset + written

    def finish_tensor(self, name: str) -> None:
        """All of a tensor is in its place; the last one of a shard gives it its name."""
        self._require_spec(name)
        shard = self._places[name][0]
        with self._lock:
            self._missing[shard].discard(name)
            complete = not self._missing[shard]
        if complete:
            self._complete(shard)

    def tensor_digest(self, name: str) -> str:
        """The SHA-256 of what stands in a tensor's place now."""
        slot = self._require_spec(name)
        shard, begin = self._places[name]
        file = self._open_shard(shard)
        found = hashlib.sha256()
        for offset in range(0, slot.nbytes, HASH_CHUNK_BYTES):
            found.update(
                os.pread(file, min(HASH_CHUNK_BYTES, slot.nbytes - offset), begin + offset)
            )
        return found.hexdigest()

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for file in self._files.values():
            os.close(file)
        if kind is None:
            self._finish()

    def _finish(self) -> None:
        missing = set().union(*self._missing.values())
        if missing:
            raise UnknownTensor(
                f"{len(missing)} tensors were never written, {min(missing)!r} first",
                next_step="run the stage again",
            )
        if len(self._missing) > 1:
            index = {
                "metadata": {"total_size": sum(slot.nbytes for slot in self._slots.values())},
                "weight_map": {name: place[0] for name, place in sorted(self._places.items())},
            }
            write_json(self._folder / INDEX_NAMES[0], index)

    def _complete(self, shard: str) -> None:
        file = self._open_shard(shard)
        os.fsync(file)
        with self._lock:
            del self._files[shard]
        os.close(file)
        _partial_path(self._folder / shard).rename(self._folder / shard)

    def _require_spec(self, name: str) -> TensorSpec:
        if name not in self._slots or name not in self._missing[self._places[name][0]]:
            raise UnknownTensor(
                f"{name!r} was {'already written' if name in self._slots else 'not announced'}",
                next_step="announce each tensor once",
            )
        return self._slots[name]

    def _open_shard(self, shard: str) -> int:
        with self._lock:
            if shard not in self._files:
                self._files[shard] = os.open(_partial_path(self._folder / shard), os.O_RDWR)
            return self._files[shard]


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor as they stand in a file."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def safetensors_layout(
    slots: Mapping[str, TensorSpec], metadata: Mapping[str, str] = MappingProxyType({})
) -> tuple[bytes, dict[str, int]]:
    """The header of a safetensors file, and where in the file each tensor begins.

    Tensors stand by type, the wide ones first, and then by name, as the safetensors library
    orders them, so that all of them are aligned and the bytes depend on nothing else.

    Source: huggingface/safetensors 24b0b28, README.md (format) and safetensors/src/tensor.rs.
    """
    names = sorted(slots, key=lambda name: (DTYPE_ORDER[slots[name].dtype], name))
    entries: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    begin = 0
    begins = {}
    for name in names:
        slot = slots[name]
        begins[name] = begin
        entries[name] = {
            "dtype": DTYPE_NAMES[slot.dtype],
            "shape": list(slot.shape),
            "data_offsets": [begin, begin + slot.nbytes],
        }
        begin += slot.nbytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: len(header) + begin for name, begin in begins.items()}


def _plan_shards(
    slots: Mapping[str, TensorSpec], shard_bytes: int
) -> dict[str, dict[str, TensorSpec]]:
    groups: list[dict[str, TensorSpec]] = [{}]
    filled = 0
    for name, slot in slots.items():
        if groups[-1] and filled + slot.nbytes > shard_bytes:
            groups.append({})
            filled = 0
        groups[-1][name] = slot
        filled += slot.nbytes
    if len(groups) == 1:
        return {SINGLE_FILE_NAMES[0]: groups[0]}
    count = len(groups)
    return {
        f"model-{number:05}-of-{count:05}.safetensors": group
        for number, group in enumerate(groups, start=1)
    }


def _require_space(folder: Path, needed: int) -> None:
    there = sum(path.stat().st_blocks * 512 for path in folder.glob("*.safetensors*"))
    free = shutil.disk_usage(folder).free
    if needed - there > free:
        raise OutputProblem(
            f"{folder.parent} has {free:,} bytes free, the output needs {needed - there:,}",
            next_step="free some space or name another output",
        )


def _remove_stale_shards(folder: Path, shards: Collection[str]) -> None:
    """Delete shards of another layout, which loaders would take for a part of the model."""
    for path in folder.glob("model*.safetensors*"):
        if path.name.removesuffix(".partial") not in shards:
            path.unlink()


def _prepare_partial(shard: Path, header: bytes, size: int) -> None:
    """A partial shard of the right size, with its header: what is there already, or a new one."""
    partial = _partial_path(shard)
    if shard.exists():
        shard.rename(partial)
    if partial.exists() and partial.stat().st_size == size:
        with partial.open("rb") as old:
            if old.read(len(header)) == header:
                return
    with partial.open("wb") as file:
        file.write(header)
        file.truncate(size)


def _partial_path(shard: Path) -> Path:
    return shard.with_name(shard.name + ".partial")
