"""The processes that do one piece of work together, or the only one.

`torchrun` starts several. Each takes lanes of tokens, or rows of weights, in turn; sums are made in
the order of the lanes and rows never meet, so that the output is the same for any number of
processes.
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
MAX_THREADS = 1024  # of an operation; a mark that says more is damaged


@runtime_checkable
class TokenSums(Protocol):
    """Sums over tokens."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them."""

    def zeros_like(self: Sums) -> Sums:
        """Sums of nothing, of the same shapes."""

    def merge(self: Sums, other: Sums) -> None:
        """Add other sums to these."""


@dataclass(frozen=True)
class ProcessGroup:
    """Who takes part, and who this process is."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> ProcessGroup:
        """The team that `torchrun` has started this process for; a team of one otherwise."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        if not dist.is_initialized():
            backend = BACKEND if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend)
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def is_main(self) -> bool:
        """Whether this process does what cannot be shared, and writes."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """Where this process computes: a GPU of its own, if `device` is any GPU."""
        if device.type != "cuda" or device.index is not None:
            return device
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))

    def shard_rank(self, lane: TokenShard) -> int:
        """The rank that a lane belongs to."""
        return lane.number % self.size

    def shards_of_rank(self, lanes: Sequence[Shard]) -> list[Shard]:
        """Those of many lanes that belong to this process."""
        return [lane for lane in lanes if self.shard_rank(lane) == self.rank]

    def items_of_rank(self, items: Sequence[Value]) -> list[Value]:
        """Those of many things that this process takes."""
        return list(items[self.rank :: self.size])

    def reduce_in_order(
        self, lanes: Sequence[Shard], collect: Callable[[Shard, Sums], None], total: Sums
    ) -> None:
        """Add the sums of some lanes to a total, in the order of the lanes, on every rank.

        Args:
            lanes: neighbours, in the same order everywhere.
            collect: adds what one lane gives; called for the lanes of this rank only.
            total: the same everywhere.
        """
        for first in range(0, len(lanes), self.size):
            turn = lanes[first : first + self.size]
            part = total.zeros_like()
            for lane in self.shards_of_rank(turn):
                collect(lane, part)
            for lane in turn:
                owner = self.shard_rank(lane)
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
        """What the first rank makes, small and plain, on every rank."""
        if self.size == 1:
            return make()
        box: list[Any] = [make() if self.is_main else None]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    @contextmanager
    def raise_together(self) -> Iterator[None]:
        """A block whose work the ranks share: what stops one of them stops all.

        Raises:
            Problem: that of the first rank that has one.
        """
        own: Problem | None = None
        try:
            yield
        except Problem as problem:
            own = problem
        for each in self.all_gather([own], self.size):
            if each is not None:
                raise each

    def all_gather(self, own: list[Value], count: int) -> list[Value]:
        """What each rank made of `own(items)`, in the order of the items, on every rank.

        Args:
            own: what this rank made.
            count: of all items.
        """
        if self.size == 1:
            return own
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, own)
        return [gathered[place % self.size][place // self.size] for place in range(count)]

    @contextmanager
    def staged(self, target: Path, **options: Unpack[StagingOptions]) -> Iterator[Path]:
        """An output while it has no name yet, as `output.staged`; the first rank names it."""
        if self.is_main:
            with staged(target, **options) as folder:
                yield self.broadcast(lambda: folder)
        else:
            yield self.broadcast(lambda: target)

    @contextmanager
    def restore_thread_count(self, target: Path, *, restart: bool) -> Iterator[None]:
        """Give the block as many threads as an unfinished output there was begun with.

        The last bits of sums depend on their number, so that another would waste what is done.

        Args:
            target: the output.
            restart: nothing is gone on with, and the number stays as it is.
        """
        now = torch.get_num_threads()
        count = now if restart else self.broadcast(lambda: _threads_of(target, now))
        if count == now:
            yield
            return
        note(f"threads: {now} -> {count}, as {target} was begun; --restart begins again")
        with torch_threads(count):
            yield


def _threads_of(target: Path, now: int) -> int:
    """The number of threads that an unfinished output was begun with; `now` where none is told."""
    count = read_resume_key(partial_folder(target)).get("threads")
    return count if isinstance(count, int) and 1 <= count <= MAX_THREADS else now
