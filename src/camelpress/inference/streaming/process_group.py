"""Process group of a run: one process, or several started by `torchrun`.

The ranks share token shards, or rows of weights, in turn. Sums are added in the order of the
shards, and rows are independent, so the output is the same for any number of processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, Unpack, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor

from camelpress.core.errors import Problem
from camelpress.core.output.staged_output import StagingOptions, partial_folder, staged
from camelpress.core.output.unfinished_output import read_resume_key
from camelpress.core.progress import note
from camelpress.inference.streaming.rounding_facts import torch_threads
from camelpress.inference.streaming.token_shards import TokenShard

Value = TypeVar("Value")
Shard = TypeVar("Shard", bound=TokenShard)
Sums = TypeVar("Sums", bound="TokenSums")
BACKEND = "cpu:gloo,cuda:nccl"
MAX_THREADS = 1024  # threads per operation; a larger recorded count is damaged


@runtime_checkable
class TokenSums(Protocol):
    """Sums over tokens, such as a Hessian."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors of the sums."""

    def zeros_like(self: Sums) -> Sums:
        """Returns zero sums of the same shapes."""

    def merge(self: Sums, sums: Sums) -> None:
        """Adds other sums to these."""


@dataclass(frozen=True)
class ProcessGroup:
    """Rank and size of the group of this process."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> ProcessGroup:
        """Joins the process group of `torchrun`; without one, returns a group of size 1."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        if not dist.is_initialized():
            backend = BACKEND if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend)
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def is_main(self) -> bool:
        """True for the rank that writes and does the work that cannot be shared."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """Returns the device of this process: its local GPU if `device` is any GPU."""
        if device.type != "cuda" or device.index is not None:
            return device
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))

    def shard_rank(self, shard: TokenShard) -> int:
        """Returns the rank that owns a shard."""
        return shard.number % self.size

    def shards_of_rank(self, shards: Sequence[Shard]) -> list[Shard]:
        """Returns the shards of this rank."""
        return [shard for shard in shards if self.shard_rank(shard) == self.rank]

    def items_of_rank(self, items: Sequence[Value]) -> list[Value]:
        """Returns the items of this rank."""
        return list(items[self.rank :: self.size])

    def reduce_in_order(
        self, shards: Sequence[Shard], collect: Callable[[Shard, Sums], None], total: Sums
    ) -> None:
        """Adds the sums of the shards to a total on every rank, in the order of the shards.

        Args:
            shards: consecutive shards, in the same order on every rank.
            collect: adds the sums of one shard; called for the shards of this rank only.
            total: sums so far, equal on every rank; changed in place.
        """
        for first in range(0, len(shards), self.size):
            group = shards[first : first + self.size]
            part = total.zeros_like()
            for shard in self.shards_of_rank(group):
                collect(shard, part)
            for shard in group:
                owner = self.shard_rank(shard)
                if owner == self.rank and not self.is_main:
                    for tensor in part.tensors:
                        dist.send(tensor, dst=0)
                elif self.is_main:
                    total.merge(self._receive_sums(total.zeros_like(), owner) if owner else part)
        for tensor in total.tensors if self.size > 1 else ():
            dist.broadcast(tensor, src=0)

    def _receive_sums(self, sums: Sums, owner: int) -> Sums:
        for tensor in sums.tensors:
            dist.recv(tensor, src=owner)
        return sums

    def broadcast(self, make: Callable[[], Value]) -> Value:
        """Returns the result of the main rank on every rank; it must be small and picklable."""
        if self.size == 1:
            return make()
        objects: list[Any] = [make() if self.is_main else None]
        dist.broadcast_object_list(objects, src=0)
        return objects[0]

    @contextmanager
    def raise_together(self) -> Iterator[None]:
        """Raises the problem of one rank on every rank at the end of the block.

        Raises:
            Problem: the problem of the lowest rank that has one.
        """
        failure: Problem | None = None
        try:
            yield
        except Problem as problem:
            failure = problem
        for shared_failure in self.all_gather([failure], self.size):
            if shared_failure is not None:
                raise shared_failure

    def all_gather(self, results: list[Value], count: int) -> list[Value]:
        """Returns the results of all ranks on every rank, in the order of the items.

        Args:
            results: results of this rank for `items_of_rank(items)`.
            count: number of all items.
        """
        if self.size == 1:
            return results
        rank_results: list[Any] = [None] * self.size
        dist.all_gather_object(rank_results, results)
        return [rank_results[index % self.size][index // self.size] for index in range(count)]

    @contextmanager
    def staged(self, target: Path, **options: Unpack[StagingOptions]) -> Iterator[Path]:
        """Creates the unfinished output like `staged_output.staged`; the main rank names it."""
        if self.is_main:
            with staged(target, **options) as folder:
                yield self.broadcast(lambda: folder)
        else:
            yield self.broadcast(lambda: target)

    @contextmanager
    def restore_thread_count(self, target: Path, *, restart: bool) -> Iterator[None]:
        """Sets the thread count of an unfinished output for the block.

        The last bits of sums depend on the thread count; a different one would invalidate finished
        work.

        Args:
            target: the output.
            restart: True if the unfinished output is discarded; the thread count stays the same.
        """
        current = torch.get_num_threads()
        count = current if restart else self.broadcast(lambda: _threads_of(target, current))
        if count == current:
            yield
            return
        note(f"threads: {current} -> {count}, as in unfinished {target}; --restart begins again")
        with torch_threads(count):
            yield


def _threads_of(target: Path, current: int) -> int:
    """Returns the thread count of an unfinished output, or `current` if it has no valid one."""
    count = read_resume_key(partial_folder(target)).get("threads")
    return count if isinstance(count, int) and 1 <= count <= MAX_THREADS else current
