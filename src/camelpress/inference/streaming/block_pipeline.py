"""Streams decoder blocks: reads ahead, stops between blocks, and records the finished ones.

Each finished block leaves its result, the hidden states after it in the files of the token shards,
and one line in the journal with hashes of the states and of the line itself. A resumed run trusts
a line only if the bytes still have these hashes. It repeats the work after the last such line.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from camelpress.core.errors import Interruption
from camelpress.core.files.file_hashes import sha256_json
from camelpress.core.output.journal import Journal
from camelpress.core.progress import track
from camelpress.core.runtime.stop_signals import stop_signals
from camelpress.inference.streaming.process_group import ProcessGroup

BlockRecord = dict[str, Any]
Weights = TypeVar("Weights")


def stream_blocks(
    numbers: range, read: Callable[[int], Weights], team: ProcessGroup, label: str
) -> Iterator[tuple[int, Weights]]:
    """Yields the number and weights of each block, and reads the next block meanwhile.

    Args:
        numbers: block numbers, up to the last block of the model.
        read: reads the weights of a block; runs in another thread.
        team: process group; a signal to one rank stops all.
        label: label of the progress bar.
    Raises:
        Interruption: the user asked to stop; the current block is finished.
    """
    if not numbers:
        return
    with stop_signals() as stop:
        weights = prefetch(read, numbers)
        for number in track(numbers, label):
            yield number, next(weights)
            if team.broadcast(lambda: stop.is_requested) and number + 1 < numbers.stop:
                raise Interruption(
                    f"stopped after block {number + 1} of {numbers.stop}",
                    next_step="run the same command again to go on",
                )


def prefetch(read: Callable[[int], Weights], numbers: range) -> Iterator[Weights]:
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


def record_block(journal: Journal, number: int, facts: BlockRecord) -> None:
    """Writes the journal line of a finished block.

    Args:
        journal: journal of the output.
        number: block number.
        facts: record of the block; its `states` are hashes of the hidden states after it.
    """
    journal.add(_key(number), {"sha256": sha256_json(facts), **facts})


def finished_blocks(
    journal: Journal,
    count: int,
    states: Callable[[int], list[Any]],
    is_whole: Callable[[BlockRecord], bool] = lambda _: True,
) -> list[BlockRecord]:
    """Returns the records of the finished blocks of an earlier run, up to the first invalid one.

    Args:
        journal: journal of the output.
        count: number of all blocks.
        states: returns the hashes of the hidden states on disk that enter a block.
        is_whole: returns True if the results of a block still exist.
    """
    records: list[BlockRecord] = []
    for number in range(count):
        facts = dict(journal[_key(number)] or {})
        if facts.pop("sha256", None) != sha256_json(facts) or not is_whole(facts):
            break
        records.append(facts)
    while records and states(len(records)) != records[-1]["states"]:
        records.pop()
    return records


def _key(number: int) -> str:
    return f"block {number}"
