"""Streams tensors of an output in parallel: reading, adding, hashing and writing overlap.

One worker handles a tensor from first to last chunk and hashes it on the way. Each input file is
hashed just before its tensors are read, so it comes from disk only once.
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
MAX_WORKERS = min(8, len(os.sched_getaffinity(0)))  # tensors or files at once
HASH_BYTES = 2**17  # bytes of a file hashed at a time


@dataclass(frozen=True)
class TensorStream:
    """Computes and writes tensors in parallel.

    Args:
        chunks_of: yields the chunks of a tensor.
        writer: writes the chunks.
        journal: records finished tensors and files, those of an earlier run included.
    """

    chunks_of: ChunkSource
    writer: CheckpointWriter
    journal: Journal

    def write_all(
        self, plans: Sequence[TensorPlan], inputs: Sequence[Checkpoint], label: str
    ) -> tuple[list[TensorFacts], dict[Path, str]]:
        """Writes every unfinished tensor.

        Args:
            plans: plans of the tensors, in the order of the last input's files.
            inputs: checkpoints to hash.
            label: label of the progress bar.
        Returns:
            facts of each tensor; SHA-256 of each input file.
        Raises:
            Problem: a tensor cannot be computed; the first failure stops all workers.
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
            {step: entry["sha256"] for step, entry in facts.items() if isinstance(step, Path)},
        )

    def _step(self, step: TensorPlan | Path, stop: Event) -> TensorFacts:
        if isinstance(step, Path):
            key = str(step)
            entry = self.journal[key]
            facts = entry or {"sha256": _hash_file(step, stop)}
        else:
            key = step.name
            entry = self.journal[key]
            if entry is not None and entry.get("sha256") != self.writer.tensor_digest(key):
                entry = None
            facts = entry or self._write_tensor(step, stop)
            self.writer.finish_tensor(key)
        if entry is None:
            self.journal.add(key, facts)
        return facts

    def _write_tensor(self, plan: TensorPlan, stop: Event) -> TensorFacts:
        digest, offset, stats = hashlib.sha256(), 0, TensorStats()
        for chunk in self.chunks_of(plan, stats):
            _raise_if_stopped(stop)
            content = tensor_bytes(chunk)
            digest.update(content)
            self.writer.write_bytes(plan.name, offset, content)
            offset += len(content)
        return {"sha256": digest.hexdigest(), **stats.facts()}


def _interleave_files(
    plans: Sequence[TensorPlan], inputs: Sequence[Checkpoint]
) -> list[TensorPlan | Path]:
    steps: list[TensorPlan | Path] = []
    paths = [path for checkpoint in inputs for path in checkpoint.weight_files()]
    for plan in plans:
        names = (plan.pair.base_name, plan.name)
        for checkpoint, name in zip(inputs, names, strict=True):
            path = checkpoint.folder / checkpoint.tensor_info(name).shard if name else None
            if path in paths:
                paths.remove(path)
                steps.append(path)
        steps.append(plan)
    return [*steps, *paths]


def _hash_file(path: Path, stop: Event) -> str:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(HASH_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            _raise_if_stopped(stop)
            digest.update(buffer[:count])
    return digest.hexdigest()


def _raise_if_stopped(stop: Event) -> None:
    if stop.is_set():
        raise Interruption("stopped with the other tensors", next_step="run the same command again")
