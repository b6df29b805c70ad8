"""Thread team that computes whole shards in parallel, one shard per thread.

Threads that share one operation all wait for the slowest of them, and a block has some forty
operations; on a busy processor they wait most of the time. Threads with a shard each wait once per
block. The result of a shard does not depend on the number of shards in progress.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from camelpress.inference.model.memory_budget import keep_freed_memory

Item = TypeVar("Item")
Result = TypeVar("Result")


class ThreadTeam:
    """Pool of threads for independent items of work.

    Args:
        size: items in progress at once.
        pool: a thread per item; None to run the items one by one in the calling thread.
    """

    def __init__(self, size: int = 1, pool: ThreadPoolExecutor | None = None) -> None:
        self.size = size
        self._pool = pool

    @classmethod
    @contextmanager
    def start(cls, max_items: int, device: torch.device) -> Iterator[ThreadTeam]:
        """Divides the threads of torch among items of work.

        Within the block an operation uses the threads of one item, outside of items too.

        Args:
            max_items: items that fit in memory at once.
            device: compute device; a GPU takes one item at a time.
        """
        threads = torch.get_num_threads()
        size = max(1, min(threads, max_items)) if device.type == "cpu" else 1
        with keep_freed_memory():
            if size == 1:
                yield cls()
                return
            threads_per_item = threads // size
            pool = ThreadPoolExecutor(
                size, initializer=torch.set_num_threads, initargs=(threads_per_item,)
            )
            torch.set_num_threads(threads_per_item)
            try:
                yield cls(size, pool)
            finally:
                pool.shutdown(cancel_futures=True)
                torch.set_num_threads(threads)

    def map(self, work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Yields the result of each item in order, computed in inference mode."""
        work = torch.inference_mode()(work)
        return map(work, items) if self._pool is None else self._pool.map(work, items)
