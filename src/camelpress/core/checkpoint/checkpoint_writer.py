"""Writes sharded safetensors as a stream, with the position of every byte known in advance.

The header of a safetensors file needs nothing but names, dtypes and shapes. So all files are laid
out first; chunks of tensors arrive in any order and are written directly to their position, so only
the chunks are in memory. The order does not change the bytes.
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

SHARD_BYTES = 4 * 10**9  # bytes of a shard, at most
# Names of all written files.
WEIGHT_FILE_PATTERNS = (SINGLE_FILE_NAMES[0], "model-*-of-*.safetensors", INDEX_NAMES[0])
HASH_CHUNK_BYTES = 2**17  # bytes hashed at a time
DTYPE_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
DTYPE_ORDER = {dtype: rank for rank, dtype in enumerate(SAFETENSORS_DTYPES.values())}


@dataclass(frozen=True)
class TensorSpec:
    """Dtype and shape of a tensor to write."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


class CheckpointWriter:
    """Writes the tensors of one checkpoint into an existing folder; safe for many threads.

    An incomplete shard is named `NAME.partial` and gets its final name with its last tensor. Shards
    of an earlier writer with the same layout are reused: `tensor_digest` hashes the current bytes
    of a tensor, and `finish_tensor` accepts them.

    Args:
        folder: Folder for the shards; a staged folder, so that half a model has no final name.
        specs: Name to dtype and shape of every tensor; shards are filled in this order.
        shard_bytes: Largest size of a shard in bytes.
        metadata: Entries of the header metadata besides `format`.
    Raises:
        OutputProblem: The disk has too little free space.
    """

    def __init__(
        self,
        folder: Path,
        specs: Mapping[str, TensorSpec],
        *,
        shard_bytes: int = SHARD_BYTES,
        metadata: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._folder = folder
        self._specs = dict(specs)
        self._lock = Lock()
        self._positions: dict[str, tuple[str, int]] = {}  # name to shard and first byte
        self._missing: dict[str, set[str]] = {}  # shard to names of unfinished tensors
        self._descriptors: dict[str, int] = {}  # shard to file descriptor
        shards = _plan_shards(specs, shard_bytes)
        _require_space(folder, sum(spec.nbytes for spec in specs.values()))
        (folder / INDEX_NAMES[0]).unlink(missing_ok=True)
        _remove_stale_shards(folder, shards)
        for shard, content in shards.items():
            header, offsets = safetensors_layout(content, metadata)
            self._positions |= {name: (shard, offset) for name, offset in offsets.items()}
            self._missing[shard] = set(content)
            size = len(header) + sum(spec.nbytes for spec in content.values())
            _prepare_partial(folder / shard, header, size)
            if not content:
                self._complete(shard)

    def write_tensor(self, name: str, tensor: Tensor) -> None:
        """Writes a whole tensor.

        Raises:
            UnknownTensor: The tensor has no spec or is already written.
            ShapeMismatch: Shape or dtype differ from the spec.
        """
        spec = self._require_spec(name)
        if (tensor.dtype, tuple(tensor.shape)) != (spec.dtype, spec.shape):
            raise ShapeMismatch(
                f"{name!r} is {tensor.dtype} {tuple(tensor.shape)}, but was announced as "
                f"{spec.dtype} {spec.shape}",
                next_step="announce the tensor that is written",
            )
        self.write_bytes(name, 0, tensor_bytes(tensor))
        self.finish_tensor(name)

    def write_bytes(self, name: str, offset: int, content: memoryview) -> None:
        """Writes bytes of a tensor from the byte `offset` of the tensor on.

        Raises:
            UnknownTensor: The tensor has no spec or is already complete.
            ShapeMismatch: The bytes exceed the tensor.
        """
        spec = self._require_spec(name)
        if not 0 <= offset <= spec.nbytes - len(content):
            raise ShapeMismatch(
                f"{name!r} has {spec.nbytes} bytes, which cannot take {len(content)} bytes from "
                f"byte {offset} on",
                next_step="announce the tensor that is written",
            )
        shard, begin = self._positions[name]
        descriptor = self._open_shard(shard)
        while len(content):
            count = os.pwrite(descriptor, content, begin + offset)
            content, offset = content[count:], offset + count

    def finish_tensor(self, name: str) -> None:
        """Marks a tensor as complete; the last one of a shard renames the shard."""
        self._require_spec(name)
        shard = self._positions[name][0]
        with self._lock:
            self._missing[shard].discard(name)
            is_complete = not self._missing[shard]
        if is_complete:
            self._complete(shard)

    def tensor_digest(self, name: str) -> str:
        """Returns the SHA-256 of the current bytes of a tensor on disk."""
        spec = self._require_spec(name)
        shard, begin = self._positions[name]
        descriptor = self._open_shard(shard)
        digest = hashlib.sha256()
        for offset in range(0, spec.nbytes, HASH_CHUNK_BYTES):
            count = min(HASH_CHUNK_BYTES, spec.nbytes - offset)
            digest.update(os.pread(descriptor, count, begin + offset))
        return digest.hexdigest()

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self,
        error_class: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        if error_class is None:
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
                "metadata": {"total_size": sum(spec.nbytes for spec in self._specs.values())},
                "weight_map": {name: shard for name, (shard, _) in sorted(self._positions.items())},
            }
            write_json(self._folder / INDEX_NAMES[0], index)

    def _complete(self, shard: str) -> None:
        descriptor = self._open_shard(shard)
        os.fsync(descriptor)
        with self._lock:
            del self._descriptors[shard]
        os.close(descriptor)
        _partial_path(self._folder / shard).rename(self._folder / shard)

    def _require_spec(self, name: str) -> TensorSpec:
        if name not in self._specs or name not in self._missing[self._positions[name][0]]:
            raise UnknownTensor(
                f"{name!r} was {'already written' if name in self._specs else 'not announced'}",
                next_step="announce each tensor once",
            )
        return self._specs[name]

    def _open_shard(self, shard: str) -> int:
        with self._lock:
            if shard not in self._descriptors:
                self._descriptors[shard] = os.open(_partial_path(self._folder / shard), os.O_RDWR)
            return self._descriptors[shard]


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Returns the bytes of a tensor in file order."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def safetensors_layout(
    specs: Mapping[str, TensorSpec], metadata: Mapping[str, str] = MappingProxyType({})
) -> tuple[bytes, dict[str, int]]:
    """Returns the header of a safetensors file and the byte offset of each tensor in the file.

    Tensors are sorted by dtype, wide ones first, and then by name, like in the safetensors library,
    so that all of them are aligned and the bytes are reproducible.

    Source: huggingface/safetensors 24b0b28, README.md (format) and safetensors/src/tensor.rs.
    """
    names = sorted(specs, key=lambda name: (DTYPE_ORDER[specs[name].dtype], name))
    entries: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    offset = 0  # from the end of the header
    offsets = {}
    for name in names:
        spec = specs[name]
        offsets[name] = offset
        entries[name] = {
            "dtype": DTYPE_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.nbytes],
        }
        offset += spec.nbytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: len(header) + offset for name, offset in offsets.items()}


def _plan_shards(
    specs: Mapping[str, TensorSpec], shard_bytes: int
) -> dict[str, dict[str, TensorSpec]]:
    groups: list[dict[str, TensorSpec]] = [{}]
    group_bytes = 0
    for name, spec in specs.items():
        if groups[-1] and group_bytes + spec.nbytes > shard_bytes:
            groups.append({})
            group_bytes = 0
        groups[-1][name] = spec
        group_bytes += spec.nbytes
    if len(groups) == 1:
        return {SINGLE_FILE_NAMES[0]: groups[0]}
    count = len(groups)
    return {
        f"model-{number:05}-of-{count:05}.safetensors": group
        for number, group in enumerate(groups, start=1)
    }


def _require_space(folder: Path, output_bytes: int) -> None:
    existing_bytes = sum(path.stat().st_blocks * 512 for path in folder.glob("*.safetensors*"))
    needed_bytes = output_bytes - existing_bytes
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes > free_bytes:
        raise OutputProblem(
            f"{folder.parent} has {free_bytes:,} bytes free, the output needs {needed_bytes:,}",
            next_step="free some space or name another output",
        )


def _remove_stale_shards(folder: Path, shards: Collection[str]) -> None:
    """Deletes shards of another layout, since loaders would read them as a part of the model."""
    for path in folder.glob("model*.safetensors*"):
        if path.name.removesuffix(".partial") not in shards:
            path.unlink()


def _prepare_partial(shard: Path, header: bytes, size: int) -> None:
    """Provides a partial shard with its header: reuses one of the same layout or creates one."""
    partial = _partial_path(shard)
    if shard.exists():
        shard.rename(partial)
    if partial.exists() and partial.stat().st_size == size:
        with partial.open("rb") as file:
            if file.read(len(header)) == header:
                return
    with partial.open("wb") as file:
        file.write(header)
        file.truncate(size)


def _partial_path(shard: Path) -> Path:
    return shard.with_name(shard.name + ".partial")
