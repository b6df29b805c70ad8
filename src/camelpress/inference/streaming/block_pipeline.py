"""Pushes token shards through one decoder block after another, and resumes from a journal.

Each finished block leaves its result and one line in the journal with a hash of the line itself.
Hidden states in files have a line after every block, and those in memory when they are saved. A
resumed run trusts a line only if the bytes still have the hashes in it. It repeats the blocks after
the last valid states, and requires their results to be the same as before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch

from camelpress.core.errors import Interruption, OutputProblem
from camelpress.core.files.file_hashes import sha256_json
from camelpress.core.output.journal import Journal
from camelpress.core.progress import track
from camelpress.core.runtime.stop_signals import stop_signals
from camelpress.inference.streaming import state_checkpoints
from camelpress.inference.streaming.process_group import ProcessGroup
from camelpress.inference.streaming.state_checkpoints import (
    ShardGroup,
    StateCheckpoints,
    hash_files,
    saved_hashes,
)
from camelpress.inference.streaming.state_home import StateHome

BlockRecord = dict[str, Any]
Weights = TypeVar("Weights")


@dataclass(frozen=True, kw_only=True)
class BlockPipeline(Generic[Weights]):
    """Work of a stage on every decoder block; all ranks run the same pipeline.

    Args:
        depth: number of blocks.
        label: label of the progress bar.
        team: process group.
        journal: journal of the output; on the main rank only.
        shards: token shards of all ranks, in groups of all models with the same sequences.
        home: home of their states.
        embed: writes the states that enter the first block, for the shards of this rank.
        read_weights: reads the weights of a block; runs in another thread.
        is_whole: returns True if all other results of a block still exist.
        needs_last_states: False if nothing reads the states after the last block.
    """

    depth: int
    label: str
    team: ProcessGroup
    journal: Journal | None
    shards: Sequence[ShardGroup]
    home: StateHome
    embed: Callable[[], None]
    read_weights: Callable[[int], Weights]
    is_whole: Callable[[BlockRecord], bool] = lambda _: True
    needs_last_states: bool = True
    _repeated: dict[int, BlockRecord] = field(default_factory=dict, init=False)

    def start(self) -> list[BlockRecord]:
        """Returns the records of an earlier run on every rank; without any, embeds the tokens.

        The records end before the first block that must run again for its states.

        Raises:
            Problem: the embedding failed on any rank.
        """
        for group in self.shards:
            for shard in group:
                shard.home = self.home
        journal = self.journal
        records, first = self.team.broadcast(
            lambda: self._finished_records(journal) if journal else ([], 0)
        )
        self._repeated.update(enumerate(records[first:], start=first))
        if first == 0:
            with self.team.raise_together():
                self.embed()
        return records[:first]

    def run(
        self, first: int, run_block: Callable[[int, Weights], BlockRecord]
    ) -> Iterator[BlockRecord]:
        """Runs the blocks from `first` on; yields the record of each when it is in the journal.

        Args:
            first: number of the first block.
            run_block: runs the shards of this rank through a block and returns the record of all
                ranks.
        Raises:
            Interruption: the user asked to stop; the current block is finished.
            OutputProblem: a repeated block has another result than before.
        """
        numbers = range(first, self.depth)
        if not numbers:
            return
        with stop_signals() as stop, self._checkpoints(first) as checkpoints:
            weights = _prefetch(torch.inference_mode()(self.read_weights), numbers)
            for number in track(numbers, self.label):
                record = run_block(number, next(weights))
                self._require_same_result(number, record)
                if self.journal:
                    self.journal.add(_key(number), {"sha256": sha256_json(record), **record})
                is_last = number + 1 == self.depth
                is_stop = self.team.broadcast(lambda: stop.is_requested) and not is_last
                checkpoints.after_block(number + 1, at_once=is_stop or is_last)
                yield record
                if is_stop:
                    raise Interruption(
                        f"stopped after block {number + 1} of {self.depth}",
                        next_step="run the same command again to go on",
                    )

    def _checkpoints(self, saved: int) -> StateCheckpoints:
        seconds = state_checkpoints.SAVE_SECONDS if self.home.in_memory else 0.0
        return StateCheckpoints(
            self._shard_groups, self.team, self.journal, saved=saved, seconds=seconds
        )

    def _shard_groups(self, block: int) -> Sequence[ShardGroup]:
        """Returns the shard groups whose states enter a block."""
        return self.shards if block < self.depth or self.needs_last_states else ()

    def _require_same_result(self, number: int, record: BlockRecord) -> None:
        earlier = self._repeated.get(number, record)
        if sha256_json(_without_states(earlier)) != sha256_json(_without_states(record)):
            raise OutputProblem(
                f"block {number + 1} ran again and has another result than before the stop",
                next_step="give --restart to begin again",
            )

    def _finished_records(self, journal: Journal) -> tuple[list[BlockRecord], int]:
        """Returns the valid records of an earlier run, and the block to go on from."""
        records: list[BlockRecord] = []
        for number in range(self.depth):
            record = dict(journal[_key(number)] or {})
            if record.pop("sha256", None) != sha256_json(record) or not self.is_whole(record):
                break
            records.append(record)
        return records, self._saved_block(journal, records)

    def _saved_block(self, journal: Journal, records: list[BlockRecord]) -> int:
        """Returns the last block whose states are on disk; 0 for none.

        States before even and odd blocks have different files, so older ones are overwritten.
        """
        saves = {
            number % 2: (number, hashes)
            for number, record in enumerate(records, start=1)
            if (hashes := saved_hashes(journal, number, record)) is not None
        }
        for number, hashes in sorted(saves.values(), reverse=True):
            if hash_files(self._shard_groups(number), number) == hashes:
                return number
        return 0


def _prefetch(read: Callable[[int], Weights], numbers: range) -> Iterator[Weights]:
    """Yields `read(number)` for each number in order, and reads one result ahead.

    No reference to a yielded result is kept.
    """
    futures: deque[Future[Weights]] = deque()
    with ThreadPoolExecutor(1) as thread:
        for number in numbers:
            futures.append(thread.submit(read, number))
            if len(futures) > 1:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()


def _without_states(record: BlockRecord) -> BlockRecord:
    return {name: facts for name, facts in record.items() if name != "states"}


def _key(number: int) -> str:
    return f"block {number}"
