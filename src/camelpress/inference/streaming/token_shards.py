"""Token shards: whole sequences that are loaded, summed and assigned to a rank together.

The hidden states of all tokens lie in files beside the output, and one shard of them at a time is
in memory. So memory does not grow with the text, a later run can resume an interrupted one, and
sums, added shard by shard, do not depend on the rank that computed them.
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

SHARDS_FOLDER = "lanes"  # subfolder of the unfinished output


class TokenShard:
    """A shard of whole sequences and the files of its hidden states.

    States have two versions: a block reads one and writes the other, so the first stays intact
    until the block is finished. All other values are kept during one block only.

    Args:
        number: shard number.
        sequences: its tokens in batches.
        folder: folder of its files.
        states: names of the states passed from block to block.
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
        """Selects the versions of the states before and after a block."""
        self._version = block % 2

    def read_states(
        self, name: str, width: int, dtype: torch.dtype, *, after: bool = False
    ) -> Float[Tensor, "tokens width"]:
        """Reads the values of a name; `after` selects the states after the block."""
        values = torch.empty(len(self.sequences.tokens), width, dtype=dtype)
        with self._path(name, after=after).open("rb") as file:
            file.readinto(tensor_bytes(values))
        return values

    def write_states(
        self, name: str, values: Float[Tensor, "tokens width"], *, after: bool = False
    ) -> None:
        """Writes values for the current block, or with `after` states for the next block."""
        path = self._path(name, after=after)
        mode = "r+b" if path.exists() else "wb"  # "r+b" keeps the cached pages of the file
        with path.open(mode) as file:
            file.write(tensor_bytes(values))

    def states_digest(self) -> str:
        """Returns the hash of the states before the block; "" if there are none."""
        paths = [self._path(name, after=False) for name in self._states]
        if not all(path.is_file() for path in paths):
            return ""
        digest = hashlib.sha256()
        for path in paths:
            with path.open("rb") as file:
                os.fsync(file.fileno())
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def _path(self, name: str, *, after: bool) -> Path:
        version = self._version ^ after if name in self._states else 0
        return self._stem.with_name(f"{self._stem.name}.{name}.{version}")


def shard_digests(shards: Sequence[TokenShard]) -> list[str]:
    """Returns the hash of each shard; disk reads and hashing run in parallel."""
    with ThreadPoolExecutor() as threads:
        return list(threads.map(lambda shard: shard.states_digest(), shards))


def cut_shards(lengths: Sequence[int], *, tokens: int) -> list[slice]:
    """Cuts neighbouring sequences into shards of `tokens` tokens or slightly more.

    Args:
        lengths: tokens of each sequence.
        tokens: shard size in tokens.
    """
    cuts, begin, shard_tokens = [], 0, 0
    for end, length in enumerate(lengths, start=1):
        shard_tokens += length
        if shard_tokens >= tokens or end == len(lengths):
            cuts.append(slice(begin, end))
            begin, shard_tokens = end, 0
    return cuts
