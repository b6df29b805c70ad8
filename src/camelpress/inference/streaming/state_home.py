"""Homes of hidden states: files, or the memory of a device.

A home keeps values under the path of their file. Values in memory reach that file only when they
are saved, and a resumed run reads them from it.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from camelpress.core.checkpoint.checkpoint_writer import tensor_bytes

SAVE_CHUNK_BYTES = 2**26  # bytes that a save copies to the host at once
Shape = tuple[int, int]


@runtime_checkable
class StateHome(Protocol):
    """Storage of hidden states by path."""

    @property
    def in_memory(self) -> bool:
        """True if the values are in memory, so a kill loses what is not saved."""

    def allocate(self, path: Path, shape: Shape, dtype: torch.dtype) -> Float[Tensor, "t w"]:
        """Returns a tensor for new values; `write` accepts it without a copy."""

    def read(self, path: Path, shape: Shape, dtype: torch.dtype) -> Float[Tensor, "t w"]:
        """Returns the values of a path, without a copy if they are in memory."""

    def write(self, path: Path, values: Float[Tensor, "t w"]) -> None:
        """Replaces the values of a path."""

    def save(self, path: Path) -> str:
        """Makes the file of a path durable, and returns its SHA-256."""


class FileHome:
    """Files beside the output; one shard at a time is in memory."""

    in_memory = False

    def allocate(self, path: Path, shape: Shape, dtype: torch.dtype) -> Float[Tensor, "t w"]:
        """Returns a new tensor."""
        return torch.empty(shape, dtype=dtype)

    def read(self, path: Path, shape: Shape, dtype: torch.dtype) -> Float[Tensor, "t w"]:
        """Reads a file."""
        values = torch.empty(shape, dtype=dtype)
        with path.open("rb") as file:
            file.readinto(tensor_bytes(values))
        return values

    def write(self, path: Path, values: Float[Tensor, "t w"]) -> None:
        """Writes a file."""
        with path.open(_write_mode(path)) as file:
            file.write(tensor_bytes(values))

    def save(self, path: Path) -> str:
        """Syncs a file to the disk, and returns its hash."""
        with path.open("rb") as file:
            os.fsync(file.fileno())
            return hashlib.file_digest(file, "sha256").hexdigest()


class MemoryHome:
    """Memory of a device; each path keeps its tensor for the whole run.

    Args:
        device: device of the values.
        pinned: true for host memory that a GPU copies from without the CPU.
    """

    in_memory = True

    def __init__(self, device: torch.device, *, pinned: bool = False) -> None:
        self._device = device
        self._pinned = pinned
        self._values: dict[Path, Tensor] = {}

    def allocate(self, path: Path, shape: Shape, dtype: torch.dtype) -> Float[Tensor, "t w"]:
        """Returns the tensor of a path, with its old values."""
        if path not in self._values:
            self._values[path] = torch.empty(
                shape, dtype=dtype, device=self._device, pin_memory=self._pinned
            )
        return self._values[path]

    def read(self, path: Path, shape: Shape, dtype: torch.dtype) -> Float[Tensor, "t w"]:
        """Returns the tensor of a path; a resumed run reads it from its file first."""
        if path not in self._values:
            self.allocate(path, shape, dtype).copy_(FileHome().read(path, shape, dtype))
        return self._values[path]

    def write(self, path: Path, values: Float[Tensor, "t w"]) -> None:
        """Copies values into the tensor of a path, unless they are that tensor."""
        if self._values.get(path) is not values:
            self.allocate(path, (values.shape[0], values.shape[1]), values.dtype).copy_(values)

    def save(self, path: Path) -> str:
        """Writes the tensor of a path to its file, and hashes it on the way.

        A path that this run never used still has the file of an earlier run.
        """
        if path not in self._values:
            return FileHome().save(path)
        digest, values = hashlib.sha256(), self._values[path]
        rows = max(1, SAVE_CHUNK_BYTES // (values.shape[1] * values.dtype.itemsize))
        with path.open(_write_mode(path)) as file:
            for chunk in values.split(rows):
                content = tensor_bytes(chunk)
                digest.update(content)
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return digest.hexdigest()


def _write_mode(path: Path) -> str:
    return "r+b" if path.exists() else "wb"  # "r+b" keeps the cached pages of the file
