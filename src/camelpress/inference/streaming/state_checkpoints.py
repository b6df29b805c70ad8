"""Checkpoints of hidden states: states in memory reach their files now and then, and at a stop.

A save runs in background threads beside the next blocks. The states before even and odd blocks have
different files, and a save never overwrites the only valid ones: the next save waits for a block of
the other kind, and a save at a stop writes the states of one block earlier first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from camelpress.core.output.journal import Journal
from camelpress.inference.streaming.process_group import ProcessGroup
from camelpress.inference.streaming.token_shards import TokenShard

SAVE_SECONDS = 120.0  # seconds between two saves of states in memory
SAVE_THREADS = 4  # shards that are saved at once, a chunk of each on the host
ShardGroup = Sequence[TokenShard]  # the shards of all models with the same sequences
Hashes = list[list[str]]  # of the states of each model in each shard group


class RunningSave(NamedTuple):
    """A save in the background."""

    block: int
    hashes: list[list[Future[str]]]  # of the shard groups of this rank

    @property
    def is_done(self) -> bool:
        """True if everything is on disk."""
        return all(future.done() for group in self.hashes for future in group)


class StateCheckpoints:
    """Saves the states before some blocks; every rank calls the same methods.

    Args:
        shard_groups: returns all shard groups whose states enter a block.
        team: process group.
        journal: journal of the output; on the main rank only.
        saved: block whose states are on disk; 0 for none.
        seconds: time between two saves; 0 to save after every block and wait for it.
    """

    def __init__(
        self,
        shard_groups: Callable[[int], Sequence[ShardGroup]],
        team: ProcessGroup,
        journal: Journal | None,
        *,
        saved: int,
        seconds: float,
    ) -> None:
        self._shard_groups = shard_groups
        self._team = team
        self._journal = journal
        self._saved = saved
        self._seconds = seconds
        self._last_time = time.monotonic()
        self._threads = ThreadPoolExecutor(SAVE_THREADS)
        self._save: RunningSave | None = None

    def __enter__(self) -> StateCheckpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def after_block(self, block: int, *, at_once: bool) -> None:
        """Saves the states before the next block if it is time to.

        Args:
            block: number of the next block.
            at_once: true to save now, and to wait until the states are on disk.
        """
        if at_once or not self._seconds:
            self._save_at_once(block)
            return
        if self._team.broadcast(lambda: bool(self._save and self._save.is_done)):
            self._finish()
        if self._team.broadcast(lambda: self._is_due(block)):
            self._begin(block)

    def _save_at_once(self, block: int) -> None:
        self._finish()
        if self._overwrites_saved(block):
            self._begin(block - 1)
            self._finish()
        if block != self._saved:
            self._begin(block)
            self._finish()

    def _begin(self, block: int) -> None:
        groups = self._team.items_of_rank(self._shard_groups(block))
        hashes = [[shard.start_save(block, self._threads) for shard in group] for group in groups]
        self._save, self._last_time = RunningSave(block, hashes), time.monotonic()

    def _finish(self) -> None:
        """Waits for the running save, and records it when it is complete on all ranks."""
        if self._save is None:
            return
        block, futures = self._save
        rank_hashes = [[future.result() for future in group] for group in futures]
        hashes = self._team.all_gather(rank_hashes, len(self._shard_groups(block)))
        if self._journal:
            self._journal.add(_key(block), {"states": hashes})
        self._save, self._saved = None, block

    def _is_due(self, block: int) -> bool:
        is_free = self._save is None and not self._overwrites_saved(block)
        return is_free and time.monotonic() - self._last_time >= self._seconds

    def _overwrites_saved(self, block: int) -> bool:
        is_same_file = 0 < self._saved < block and (block - self._saved) % 2 == 0
        return is_same_file and bool(self._shard_groups(block))


def saved_hashes(journal: Journal, block: int, record: dict[str, Any]) -> Hashes | None:
    """Returns the hashes of the saved states before a block; None without any.

    Args:
        journal: journal of an earlier run.
        block: number of the block.
        record: record of the block before it. Earlier versions kept the hashes there, and those of
            a single model without a list for each group.
    """
    states = (journal[_key(block)] or record).get("states")
    if not isinstance(states, list):
        return None
    return [[group] if isinstance(group, str) else group for group in states]


def hash_files(groups: Sequence[ShardGroup], block: int) -> Hashes:
    """Returns the hashes of the files with the states before a block; shards run in parallel."""
    with ThreadPoolExecutor() as threads:
        return list(
            threads.map(lambda group: [shard.states_digest(block) for shard in group], groups)
        )


def _key(block: int) -> str:
    return f"states {block}"
