"""Pushes token shards through one decoder block after another, and resumes from a journal.

Each finished block leaves its result, the hidden states after it in the files of the token shards,
and one line in the journal with hashes of the states and of the line itself. A resumed run trusts
a line only if the bytes still have these hashes. It repeats the work after the last such line.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from camelpress.core.errors import Interruption
from camelpress.core.files.file_hashes import sha256_json
from camelpress.core.output.journal import Journal
from camelpress.core.progress import track
from camelpress.core.runtime.stop_signals import stop_signals
from camelpress.inference.streaming.process_group import ProcessGroup

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
        embed: writes the states that enter the first block, for the shards of this rank.
        state_hashes: returns the hashes of the states on disk that enter a block, for all shards.
        read_weights: reads the weights of a block; runs in another thread.
        is_whole: returns True if all other results of a block still exist.
    """

    depth: int
    label: str
    team: ProcessGroup
    journal: Journal | None
    embed: Callable[[], None]
    state_hashes: Callable[[int], list[Any]]
    read_weights: Callable[[int], Weights]
    is_whole: Callable[[BlockRecord], bool] = lambda _: True

    def start(self) -> list[BlockRecord]:
        """Returns the records of an earlier run on every rank; without any, embeds the tokens.

        Raises:
            Problem: the embedding failed on any rank.
        """
        journal = self.journal
        records = self.team.broadcast(lambda: self._finished_records(journal) if journal else [])
        if not records:
            with self.team.raise_together():
                self.embed()
        return records

    def run(
        self, first: int, run_block: Callable[[int, Weights], BlockRecord]
    ) -> Iterator[BlockRecord]:
        """Runs the blocks from `first` on; yields the record of each when it is in the journal.

        Args:
            first: number of the first block.
            run_block: runs the shards of this rank through a block and returns the record of all
                ranks; its `states` are the hashes of the states after the block.
        Raises:
            Interruption: the user asked to stop; the current block is finished.
        """
        numbers = range(first, self.depth)
        if not numbers:
            return
        with stop_signals() as stop:
            weights = _prefetch(torch.inference_mode()(self.read_weights), numbers)
            for number in track(numbers, self.label):
                record = run_block(number, next(weights))
                if self.journal:
                    self.journal.add(_key(number), {"sha256": sha256_json(record), **record})
                yield record
                if self.team.broadcast(lambda: stop.is_requested) and number + 1 < self.depth:
                    raise Interruption(
                        f"stopped after block {number + 1} of {self.depth}",
                        next_step="run the same command again to go on",
                    )

    def _finished_records(self, journal: Journal) -> list[BlockRecord]:
        """Returns the records of an earlier run, up to the first invalid one."""
        records: list[BlockRecord] = []
        for number in range(self.depth):
            record = dict(journal[_key(number)] or {})
            if record.pop("sha256", None) != sha256_json(record) or not self.is_whole(record):
                break
            records.append(record)
        while records and self.state_hashes(len(records)) != records[-1]["states"]:
            records.pop()
        return records


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


def _key(number: int) -> str:
    return f"block {number}"
