"""Token shards: whole sequences that are loaded, summed and assigned to a rank together.

The hidden states of all tokens lie in a home that the run chooses by their size: memory, or files
beside the output. A resumed run reads them from these files, and sums, added shard by shard, do not
depend on the rank that computed them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from camelpress.inference.model.token_batches import TokenBatches
from camelpress.inference.streaming.state_home import FileHome, StateHome

SHARDS_FOLDER = "lanes"  # subfolder of the unfinished output


class TokenShard:
    """A shard of whole sequences and its hidden states.

    States have two versions: a block reads one and writes the other, so the first stays intact
    until the next block. All other values are kept during one block only.

    Args:
        number: shard number.
        sequences: its tokens in batches.
        folder: folder of its files.
        states: names of the states passed from block to block.
        depth: number of blocks of the model; its states stay the same after the last.
    """

    home: StateHome = FileHome()

    def __init__(
        self,
        number: int,
        sequences: TokenBatches,
        folder: Path,
        *,
        states: tuple[str, ...],
        depth: int = 2**62,
    ) -> None:
        self.number = number
        self.sequences = sequences
        self._states = states
        self._depth = depth
        self._stem = folder / f"lane-{number:04}"
        self._block = 0
        self._saves: dict[Path, Future[str]] = {}

    def select_block(self, block: int) -> None:
        """Selects the versions of the states before and after a block."""
        self._block = block

    def allocate_states(
        self, name: str, width: int, dtype: torch.dtype, *, after: bool = False
    ) -> Float[Tensor, "tokens width"]:
        """Returns a tensor for new values of a name; waits until its old values are saved."""
        path = self._path(name, self._block + after)
        if path in self._saves:
            self._saves.pop(path).result()
        return self.home.allocate(path, (len(self.sequences.tokens), width), dtype)

    def read_states(
        self, name: str, width: int, dtype: torch.dtype, *, after: bool = False
    ) -> Float[Tensor, "tokens width"]:
        """Reads the values of a name; `after` selects the states after the block."""
        path = self._path(name, self._block + after)
        return self.home.read(path, (len(self.sequences.tokens), width), dtype)

    def write_states(
        self, name: str, values: Float[Tensor, "tokens width"], *, after: bool = False
    ) -> None:
        """Writes values for the current block, or with `after` states for the next block."""
        self.home.write(self._path(name, self._block + after), values)

    def start_save(self, block: int, threads: Executor) -> Future[str]:
        """Starts to save the states before a block to their files; the result is their hash."""
        paths = self._state_paths(block)
        save = threads.submit(lambda: _combine([self.home.save(path) for path in paths]))
        self._saves = dict.fromkeys(paths, save)
        return save

    def states_digest(self, block: int) -> str:
        """Returns the hash of the files with the states before a block; "" if there are none."""
        paths = self._state_paths(block)
        if not all(path.is_file() for path in paths):
            return ""
        return _combine([FileHome().save(path) for path in paths])

    def _state_paths(self, block: int) -> list[Path]:
        return [self._path(name, block) for name in self._states]

    def _path(self, name: str, block: int) -> Path:
        version = min(block, self._depth) % 2 if name in self._states else 0
        return self._stem.with_name(f"{self._stem.name}.{name}.{version}")


def _combine(hashes: Sequence[str]) -> str:
    return hashlib.sha256(b"".join(map(bytes.fromhex, hashes))).hexdigest()


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
