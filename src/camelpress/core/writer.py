"""Sharded safetensors, streamed: every byte has its place before the first tensor is there.

The header of a safetensors file needs only names, types and shapes. So all files are laid out
first, tensors arrive one at a time in any order and go straight to their place, and no more than
one of them is ever in memory. The same tensors give the same bytes, whatever the order.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from torch import Tensor

from camelpress.core.errors import OutputProblem, ShapeMismatch, UnknownTensor
from camelpress.core.json import write_json
from camelpress.core.shards import DTYPES, INDEXES, SINGLES

SHARD_BYTES = 4 * 10**9
NAMES = {dtype: name for name, dtype in DTYPES.items()}
RANKS = {dtype: rank for rank, dtype in enumerate(DTYPES.values())}


@dataclass(frozen=True)
class Slot:
    """A tensor that is going to be written."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


class CheckpointWriter:
    """Writes the tensors of one checkpoint into an existing folder.

    Args:
        folder: where the shards go; give a staged folder, so that half a model has no name.
        slots: every tensor that will come.
        shard_bytes: a shard closes before it would grow beyond this.
    """

    def __init__(
        self, folder: Path, slots: Mapping[str, Slot], *, shard_bytes: int = SHARD_BYTES
    ) -> None:
        self._folder = folder
        self._slots = dict(slots)
        self._missing = set(slots)
        self._places: dict[str, tuple[str, int]] = {}
        self._headers: dict[str, bytes] = {}
        self._file: BinaryIO | None = None
        needed = sum(slot.nbytes for slot in slots.values())
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise OutputProblem(
                f"{folder.parent} has {free:,} bytes free, the output needs {needed:,}",
                next_step="free some space or name another output",
            )
        self._lay_out(shard_bytes)

    def put(self, name: str, tensor: Tensor) -> None:
        """Write one tensor to its place.

        Raises:
            UnknownTensor: it was not announced, or came before.
            ShapeMismatch: its shape or dtype is not the announced one.
        """
        if name not in self._missing:
            raise UnknownTensor(
                f"{name!r} was {'already written' if name in self._slots else 'not announced'}",
                next_step="announce each tensor once",
            )
        slot = self._slots[name]
        if (tensor.dtype, tuple(tensor.shape)) != (slot.dtype, slot.shape):
            raise ShapeMismatch(
                f"{name!r} is {tensor.dtype} {tuple(tensor.shape)}, announced was {slot.dtype} "
                f"{slot.shape}",
                next_step="announce what is written",
            )
        shard, offset = self._places[name]
        file = self._open(shard)
        file.seek(offset)
        file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        self._missing.discard(name)

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
        if kind is None:
            self._finish()

    def _finish(self) -> None:
        if self._missing:
            raise UnknownTensor(
                f"{len(self._missing)} tensors were never written, {min(self._missing)!r} first",
                next_step="run the stage again",
            )
        if len(self._headers) > 1:
            index = {
                "metadata": {"total_size": sum(slot.nbytes for slot in self._slots.values())},
                "weight_map": {name: place[0] for name, place in sorted(self._places.items())},
            }
            write_json(self._folder / INDEXES[0], index)

    def _lay_out(self, shard_bytes: int) -> None:
        shards: list[dict[str, Slot]] = [{}]
        filled = 0
        for name, slot in self._slots.items():
            if shards[-1] and filled + slot.nbytes > shard_bytes:
                shards.append({})
                filled = 0
            shards[-1][name] = slot
            filled += slot.nbytes
        for number, slots in enumerate(shards, start=1):
            shard = (
                SINGLES[0]
                if len(shards) == 1
                else f"model-{number:05}-of-{len(shards):05}.safetensors"
            )
            header, offsets = layout(slots)
            self._headers[shard] = header
            for name, offset in offsets.items():
                self._places[name] = (shard, offset)
            with (self._folder / shard).open("wb") as file:
                file.write(header)
                file.truncate(len(header) + sum(slot.nbytes for slot in slots.values()))

    def _open(self, shard: str) -> BinaryIO:
        path = self._folder / shard
        if self._file is None or self._file.name != str(path):
            if self._file is not None:
                self._file.close()
            self._file = path.open("r+b")
        return self._file


def layout(slots: Mapping[str, Slot]) -> tuple[bytes, dict[str, int]]:
    """The header of a safetensors file, and where in the file each tensor begins.

    Tensors stand by type, the wide ones first, and then by name, as the safetensors library
    orders them, so that all of them are aligned and the bytes depend on nothing else.

    Source: huggingface/safetensors 24b0b28, README.md (format) and safetensors/src/tensor.rs.
    """
    names = sorted(slots, key=lambda name: (RANKS[slots[name].dtype], name))
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    begins = {}
    for name in names:
        slot = slots[name]
        begins[name] = begin
        entries[name] = {
            "dtype": NAMES[slot.dtype],
            "shape": list(slot.shape),
            "data_offsets": [begin, begin + slot.nbytes],
        }
        begin += slot.nbytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: len(header) + begin for name, begin in begins.items()}
