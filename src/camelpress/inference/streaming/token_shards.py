"""Tokens in lanes: the unit that is in memory, that is summed, and that a rank takes.

The hidden states of all tokens stand in files beside the output, and one lane of them at a time in
memory. So memory does not grow with the text, what an interrupted run left is there for the next,
and because sums go lane by lane, they do not depend on who computed which.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from camelpress.core.checkpoint.checkpoint_writer import tensor_bytes
from camelpress.inference.model.token_batches import TokenBatches

SHARDS_FOLDER = "lanes"  # a folder in an output that is being made
SHARD_TOKENS = 4096


class TokenShard:
    """Some whole sequences, and the files that hold what is known of their tokens.

    States have two versions: a block reads one and writes the other, so that the first is whole
    until the block is finished. Everything else is kept for the length of a block.

    Args:
        number: of the lane.
        sequences: its tokens.
        folder: for its files.
        states: names of what passes from block to block.
    """

    def __init__(
        self, number: int, sequences: TokenBatches, folder: Path, *, states: tuple[str, ...]
    ) -> None:
        self.number = number
        self.sequences = sequences
        self._states = states
        self._stem = folder / f"lane-{number:04}"
        self._version = 0

    def select_block(self, block: int) -> None:
        """Turn to a block: to the states that enter it, and to those that leave it."""
        self._version = block % 2

    def read_states(
        self, name: str, width: int, dtype: torch.dtype, *, after: bool = False
    ) -> Float[Tensor, "tokens width"]:
        """What was written under a name; `after` tells a state that leaves from one that enters."""
        found = torch.empty(len(self.sequences.tokens), width, dtype=dtype)
        with self._path(name, after=after).open("rb") as file:
            file.readinto(tensor_bytes(found))
        return found

    def write_states(
        self, name: str, values: Float[Tensor, "tokens width"], *, after: bool = False
    ) -> None:
        """Keep something for the length of a block, or a state for the next one."""
        path = self._path(name, after=after)
        with path.open("r+b" if path.exists() else "wb") as file:  # pages that are there, stay
            file.write(tensor_bytes(values))

    def states_digest(self) -> str:
        """A hash of the states that enter the block; "" where there are none."""
        paths = [self._path(name, after=False) for name in self._states]
        if not all(path.is_file() for path in paths):
            return ""
        found = hashlib.sha256()
        for path in paths:
            with path.open("rb") as file:
                os.fsync(file.fileno())
                found.update(hashlib.file_digest(file, "sha256").digest())
        return found.hexdigest()

    def _path(self, name: str, *, after: bool) -> Path:
        version = self._version ^ after if name in self._states else 0
        return self._stem.with_name(f"{self._stem.name}.{name}.{version}")


def shard_digests(lanes: Sequence[TokenShard]) -> list[str]:
    """The hash of each, while the disk and all cores are busy."""
    with ThreadPoolExecutor() as threads:
        return list(threads.map(lambda lane: lane.states_digest(), lanes))


def cut_shards(lengths: Sequence[int], *, tokens: int = 2**62) -> list[slice]:
    """Neighbouring sequences in lanes of `LANE_TOKENS` or little more.

    Args:
        lengths: of the sequences.
        tokens: that are enough for a lane, if `LANE_TOKENS` are more.
    """
    cuts, begin, held = [], 0, 0
    for end, length in enumerate(lengths, start=1):
        held += length
        if held >= min(SHARD_TOKENS, tokens) or end == len(lengths):
            cuts.append(slice(begin, end))
            begin, held = end, 0
    return cuts
