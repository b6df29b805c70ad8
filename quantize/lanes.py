"""Calibration tokens in lanes: the unit that is in memory, that is summed, and that a rank takes.

The hidden states of all tokens stand in files beside the output, and one lane of them at a time in
memory. So memory does not grow with the samples, what an interrupted run left is there for the
next, and because sums go lane by lane, they do not depend on who computed which.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from math import ceil
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from camelpress.core.sequences import Batch, Sequences
from camelpress.core.writer import data

LANE_TOKENS = 4096
LEAST_PAIRED = 16_384  # tokens, and `PAIRED` for each column of the widest layer; more cost
PAIRED = 10  # as much again as the quantized model's, and hardly change what a layer aims at
STATES = ("hidden", "reference")  # of the quantized and of the 16-bit model


class Lane:
    """Some whole sequences, and what is known of their tokens.

    States have two versions: a block reads one and writes the other, so that the first is whole
    until the block is finished. Everything else is kept for the length of a block.

    Args:
        number: of the lane.
        sequences: its tokens.
        counted: which of them enter a Hessian.
        folder: for its files.
        paired: whether the 16-bit model's states of these tokens are kept beside the quantized
            one's.
    """

    def __init__(
        self,
        number: int,
        sequences: Sequences,
        counted: Bool[Tensor, " tokens"],
        folder: Path,
        *,
        paired: bool,
    ) -> None:
        self.number = number
        self.sequences = sequences
        self.paired = paired
        self._counted = counted
        self._all_counted = bool(counted.all())
        self._stem = folder / f"lane-{number:04}"
        self._version = 0

    def counted(
        self, batch: Batch, values: Float[Tensor, "batch longest width"]
    ) -> Float[Tensor, "counted width"]:
        """What belongs to the tokens of a batch that enter a Hessian."""
        if self._all_counted and batch.run is not None:
            return values.flatten(0, 1)
        real = batch.real & self._counted[batch.places]
        return values[real.to(values.device)]

    def at(self, block: int) -> None:
        """Turn to a block: to the states that enter it, and to those that leave it."""
        self._version = block % 2

    def read(
        self, name: str, width: int, dtype: torch.dtype, *, after: bool = False
    ) -> Float[Tensor, "tokens width"]:
        """What was written under a name; `after` tells a state that leaves from one that enters."""
        found = torch.empty(len(self.sequences.tokens), width, dtype=dtype)
        with self._path(name, after=after).open("rb") as file:
            file.readinto(data(found))
        return found

    def write(
        self, name: str, values: Float[Tensor, "tokens width"], *, after: bool = False
    ) -> None:
        """Keep something for the length of a block, or a state for the next one."""
        path = self._path(name, after=after)
        with path.open("r+b" if path.exists() else "wb") as file:  # pages that are there, stay
            file.write(data(values))

    def digest(self) -> str:
        """A hash of the states that enter the block; "" where there are none."""
        paths = [self._path(name, after=False) for name in STATES[: 1 + self.paired]]
        if not all(path.is_file() for path in paths):
            return ""
        found = hashlib.sha256()
        for path in paths:
            with path.open("rb") as file:
                os.fsync(file.fileno())
                found.update(hashlib.file_digest(file, "sha256").digest())
        return found.hexdigest()

    def _path(self, name: str, *, after: bool) -> Path:
        version = self._version ^ after if name in STATES else 0
        return self._stem.with_name(f"{self._stem.name}.{name}.{version}")


def lanes(
    sequences: Sequence[Sequence[int]],
    counted: Bool[Tensor, " tokens"],
    folder: Path,
    *,
    limit: int,
    columns: int,
) -> list[Lane]:
    """Cut the sequences into lanes of `LANE_TOKENS` or little more, the paired ones first.

    Args:
        sequences: ids.
        counted: of all tokens end to end, those that enter a Hessian.
        folder: for the lanes' files.
        limit: positions the model has.
        columns: of the widest layer: for each, about `PAIRED` counted tokens are in paired lanes,
            and `LEAST_PAIRED` in all. These lanes are spread evenly, because sequences stand
            source by source. 0: none is paired.
    """
    cuts: list[tuple[Sequences, Bool[Tensor, " tokens"]]] = []
    begin = tokens = 0
    for end, ids in enumerate(sequences, start=1):
        tokens += len(ids)
        if tokens >= LANE_TOKENS or end == len(sequences):
            cuts.append((Sequences(sequences[begin:end], limit=limit), counted[:tokens]))
            begin, tokens, counted = end, 0, counted[tokens:]
    total = sum(int(part.sum()) for _, part in cuts)
    paired = max(LEAST_PAIRED, PAIRED * columns) if columns else 0
    wanted = min(len(cuts), ceil(paired * len(cuts) / total))
    chosen = {(2 * turn + 1) * len(cuts) // (2 * wanted) for turn in range(wanted)}
    places = sorted(range(len(cuts)), key=lambda place: place not in chosen)
    return [
        Lane(number, *cuts[place], folder, paired=place in chosen)
        for number, place in enumerate(places)
    ]
