"""Rounds a base while reading it, like scripts with a base in another dtype."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from camelpress.core.checkpoint.checkpoint import Checkpoint


class RoundedBase(Checkpoint):
    """Rounds every value of a checkpoint to one dtype while reading it.

    Args:
        source: base as stored.
        dtype: dtype of the script's base.
    """

    def __init__(self, source: Checkpoint, dtype: torch.dtype) -> None:
        super().__init__(source.folder, source.config, source.tensors, origin=source.source_name)
        self._source = source
        self._dtype = dtype

    def read(self, name: str) -> Tensor:
        """Returns one whole tensor, rounded."""
        return self._source.read(name).to(self._dtype)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Returns rows `start` to `stop` of a tensor, rounded."""
        return self._source.read_rows(name, start, stop).to(self._dtype)

    def weight_files(self) -> Iterator[Path]:
        """Yields the weight files of the base."""
        yield from self._source.weight_files()

    def sidecar_files(self) -> dict[str, Path]:
        """Returns the sidecar files of the base."""
        return self._source.sidecar_files()
