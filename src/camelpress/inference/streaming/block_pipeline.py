"""From block to block: read ahead, stop in between, and remember, so that a second run goes on.

After each block what it made is in its place, the hidden states that leave it in the lanes' files,
and one line in the journal says so, with hashes of the states and of itself. A line is believed if
the bytes still have these hashes. What was begun after the last such line is done again.
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
    """Block after block, with what `read` gives of it; that of the next is read meanwhile.

    Args:
        numbers: of the blocks; the last one is that of the model.
        read: is called in another thread.
        team: who takes part; a signal to one rank stops all.
        label: of the progress shown.
    Raises:
        Interrupted: somebody asked for the end, and the block under way is finished.
    """
    if not numbers:
        return
    with stop_signals() as stop:
        coming = prefetch(read, numbers)
        for number in track(numbers, label):
            yield number, next(coming)
            if team.broadcast(lambda: stop.is_requested) and number + 1 < numbers.stop:
                raise Interruption(
                    f"stopped after block {number + 1} of {numbers.stop}",
                    next_step="run the same command again to go on",
                )


def prefetch(read: Callable[[int], Weights], numbers: range) -> Iterator[Weights]:
    """What `read` gives for each number, of which nothing is held here; one is read ahead."""
    coming: deque[Future[Weights]] = deque()
    with ThreadPoolExecutor(1) as thread:
        for number in numbers:
            coming.append(thread.submit(read, number))
            if len(coming) > 1:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def record_block(journal: Journal, number: int, facts: BlockRecord) -> None:
    """Write down that a block is finished.

    Args:
        journal: of the output.
        number: of the block.
        facts: what is to be known of it, with its `states`: hashes of those that leave it.
    """
    journal.add(_key(number), {"sha256": sha256_json(facts), **facts})


def finished_blocks(
    journal: Journal,
    count: int,
    states: Callable[[int], list[Any]],
    whole: Callable[[BlockRecord], bool] = lambda _: True,
) -> list[BlockRecord]:
    """What an earlier run wrote down of the first blocks, as far as it can be believed.

    Args:
        journal: of the output.
        count: of all blocks.
        states: hashes of the states that enter a block, as they are there now.
        whole: whether what a block made is still there.
    """
    done: list[BlockRecord] = []
    for number in range(count):
        facts = dict(journal[_key(number)] or {})
        if facts.pop("sha256", None) != sha256_json(facts) or not whole(facts):
            break
        done.append(facts)
    while done and states(len(done)) != done[-1]["states"]:
        done.pop()
    return done


def _key(number: int) -> str:
    return f"block {number}"
