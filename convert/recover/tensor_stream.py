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

from camelpress.convert.recover.arithmetic import TensorStats
from camelpress.convert.recover.diff_rules import TensorPlan
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.checkpoint_writer import CheckpointWriter, tensor_bytes
from camelpress.core.errors import Interruption
from camelpress.core.output.journal import Journal
from camelpress.core.progress import track

ChunkSource = Callable[[TensorPlan, TensorStats], Iterator[Tensor]]
TensorFacts = dict[str, Any]
MAX_WORKERS = min(8, len(os.sched_getaffinity(0)))
HASH_BYTES = 2**17  # bytes of a file that are hashed at a time


@dataclass(frozen=True)
class TensorStream:
    """Where the pieces go.

    Args:
        work: yields the pieces of a tensor.
        writer: takes them.
        journal: takes what is finished, and knows what an earlier run finished.
    """

    chunks_of: ChunkSource
    writer: CheckpointWriter
    journal: Journal

    def write_all(
        self, plans: Sequence[TensorPlan], inputs: Sequence[Checkpoint], label: str
    ) -> tuple[list[TensorFacts], dict[Path, str]]:
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
        steps = _interleave_files(plans, inputs)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(MAX_WORKERS) as pool:
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

    def _step(self, step: TensorPlan | Path, stop: Event) -> TensorFacts:
        if isinstance(step, Path):
            key = str(step)
            known = self.journal[key]
            facts = known or {"sha256": _hash_file(step, stop)}
        else:
            key = step.name
            known = self.journal[key]
            if known is not None and known.get("sha256") != self.writer.tensor_digest(key):
                known = None
            facts = known or self._write_tensor(step, stop)
            self.writer.finish_tensor(key)
        if known is None:
            self.journal.add(key, facts)
        return facts

    def _write_tensor(self, plan: TensorPlan, stop: Event) -> TensorFacts:
        digest, offset, told = hashlib.sha256(), 0, TensorStats()
        for piece in self.chunks_of(plan, told):
            _raise_if_stopped(stop)
            content = tensor_bytes(piece)
            digest.update(content)
            self.writer.write_bytes(plan.name, offset, content)
            offset += len(content)
        return {"sha256": digest.hexdigest(), **told.facts()}


def _interleave_files(
    plans: Sequence[TensorPlan], inputs: Sequence[Checkpoint]
) -> list[TensorPlan | Path]:
    steps: list[TensorPlan | Path] = []
    waiting = [path for checkpoint in inputs for path in checkpoint.weight_files()]
    for plan in plans:
        names = (plan.pair.base_name, plan.name)
        for checkpoint, name in zip(inputs, names, strict=True):
            path = checkpoint.folder / checkpoint.tensor_info(name).shard if name else None
            if path in waiting:
                waiting.remove(path)
                steps.append(path)
        steps.append(plan)
    return [*steps, *waiting]


def _hash_file(path: Path, stop: Event) -> str:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(HASH_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            _raise_if_stopped(stop)
            digest.update(buffer[:count])
    return digest.hexdigest()


def _raise_if_stopped(stop: Event) -> None:
    if stop.is_set():
        raise Interruption("given up", next_step="run the same command again")
