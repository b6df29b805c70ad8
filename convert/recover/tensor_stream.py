"""All tensors of an output, several at a time: reading, adding, hashing and writing overlap.

A worker takes a tensor from its first piece to its last, so that its hash is made on the way. In
between stand the input files, to be hashed whole: each just before the tensors that are read from
it, so that a file comes from the disk once.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import torch
from torch import Tensor

from camelpress.convert.recover.arithmetic import Told
from camelpress.convert.recover.diff_rules import Plan
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.checkpoint_writer import CheckpointWriter, data
from camelpress.core.errors import Interrupted
from camelpress.core.output.journal import Journal
from camelpress.core.progress import track

Work = Callable[[Plan, Told], Iterator[Tensor]]
Facts = dict[str, Any]
WORKERS = min(8, len(os.sched_getaffinity(0)))
CHUNK = 2**17  # bytes of a file that are hashed at a time


@dataclass(frozen=True)
class Stream:
    """Where the pieces go.

    Args:
        work: yields the pieces of a tensor.
        writer: takes them.
        journal: takes what is finished, and knows what an earlier run finished.
    """

    work: Work
    writer: CheckpointWriter
    journal: Journal

    def run(
        self, plans: Sequence[Plan], inputs: Sequence[Checkpoint], label: str
    ) -> tuple[list[Facts], dict[Path, str]]:
        """Write every tensor that is not there yet.

        Args:
            plans: the tensors, in the order of the last input's files.
            inputs: whose files are hashed.
            label: of the progress shown.
        Returns:
            what is known of each tensor; the SHA-256 of each input file.
        Raises:
            Problem: of the first tensor found that cannot be made; the others are given up.
        """
        stop = Event()
        steps = _steps(plans, inputs)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(WORKERS) as pool:
                futures = [pool.submit(self._step, step, stop) for step in steps]
                try:
                    for _, future in zip(track(futures, label), as_completed(futures), strict=True):
                        future.result()
                finally:
                    stop.set()
                    pool.shutdown(wait=False, cancel_futures=True)
        finally:
            torch.set_num_threads(threads)
        facts = {step: future.result() for step, future in zip(steps, futures, strict=True)}
        return (
            [facts[plan] for plan in plans],
            {step: told["sha256"] for step, told in facts.items() if isinstance(step, Path)},
        )

    def _step(self, step: Plan | Path, stop: Event) -> Facts:
        if isinstance(step, Path):
            key = str(step)
            known = self.journal[key]
            facts = known or {"sha256": _hashed(step, stop)}
        else:
            key = step.name
            known = self.journal[key]
            if known is not None and known.get("sha256") != self.writer.digest(key):
                known = None
            facts = known or self._written(step, stop)
            self.writer.done(key)
        if known is None:
            self.journal.add(key, facts)
        return facts

    def _written(self, plan: Plan, stop: Event) -> Facts:
        digest, offset, told = hashlib.sha256(), 0, Told()
        for piece in self.work(plan, told):
            _go_on(stop)
            content = data(piece)
            digest.update(content)
            self.writer.write(plan.name, offset, content)
            offset += len(content)
        return {"sha256": digest.hexdigest(), **told.facts()}


def _steps(plans: Sequence[Plan], inputs: Sequence[Checkpoint]) -> list[Plan | Path]:
    steps: list[Plan | Path] = []
    waiting = [path for checkpoint in inputs for path in checkpoint.files()]
    for plan in plans:
        names = (plan.pair.base_name, plan.name)
        for checkpoint, name in zip(inputs, names, strict=True):
            path = checkpoint.folder / checkpoint.info(name).shard if name else None
            if path in waiting:
                waiting.remove(path)
                steps.append(path)
        steps.append(plan)
    return [*steps, *waiting]


def _hashed(path: Path, stop: Event) -> str:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            _go_on(stop)
            digest.update(buffer[:count])
    return digest.hexdigest()


def _go_on(stop: Event) -> None:
    if stop.is_set():
        raise Interrupted("given up", next_step="run the same command again")
