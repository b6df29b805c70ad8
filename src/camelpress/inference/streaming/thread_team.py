"""Threads that take whole pieces of work, each of which computes alone.

An operation that threads share lasts until the slowest is done, and a block has some forty of them:
on a processor that does anything else beside, all wait most of the time. Pieces that are shared out
wait for one another once. What comes of a piece does not depend on how many others are under way.
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
    """Who computes.

    Args:
        size: pieces that are under way at once.
        pool: threads, one a piece; None where the caller does one after the other.
    """

    def __init__(self, size: int = 1, pool: ThreadPoolExecutor | None = None) -> None:
        self.size = size
        self._pool = pool

    @classmethod
    @contextmanager
    def start(cls, most: int, device: torch.device) -> Iterator[ThreadTeam]:
        """The threads that torch computes with, shared out over pieces.

        Inside the block an operation has the threads of one piece; what is not a piece waits.

        Args:
            most: pieces that there is memory for.
            device: that computes; a GPU takes one piece after the other.
        """
        threads = torch.get_num_threads()
        size = max(1, min(threads, most)) if device.type == "cpu" else 1
        with keep_freed_memory():
            if size == 1:
                yield cls()
                return
            each = threads // size
            pool = ThreadPoolExecutor(size, initializer=torch.set_num_threads, initargs=(each,))
            torch.set_num_threads(each)
            try:
                yield cls(size, pool)
            finally:
                pool.shutdown(cancel_futures=True)
                torch.set_num_threads(threads)

    def map(self, work: Callable[[Item], Result], pieces: Sequence[Item]) -> Iterator[Result]:
        """What comes of each piece, in order; autograd sees nothing of it."""
        work = torch.inference_mode()(work)
        return map(work, pieces) if self._pool is None else self._pool.map(work, pieces)
