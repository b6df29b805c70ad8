"""Several threads make the tensors of an output; the fault of one of them is that of the run."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from camelpress.convert.inputs.tensor_pairs import TensorPair
from camelpress.convert.recover import tensor_stream
from camelpress.convert.recover.arithmetic import TensorStats
from camelpress.convert.recover.diff_rules import TensorPlan
from camelpress.convert.recover.tensor_stream import ChunkSource, TensorFacts, TensorStream
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.checkpoint_writer import CheckpointWriter, TensorSpec
from camelpress.core.errors import Interruption, NumericsProblem, ShapeMismatch
from camelpress.core.files.file_hashes import sha256_file
from camelpress.core.output.journal import Journal

NAMES = [f"t{number:02}" for number in range(30)]
PLANS = [TensorPlan(TensorPair(name, (4, 3), name, (4, 3)), "sum", 4) for name in NAMES]
SLOTS = {plan.name: TensorSpec(torch.float32, plan.shape) for plan in PLANS}
PROBLEM = NumericsProblem("wrong", next_step="do right")


def whole(name: str) -> Tensor:
    return torch.full((4, 3), float(name[1:]))


def rows(plan: TensorPlan, told: TensorStats) -> Iterator[Tensor]:
    told.largest_change = float(plan.name[1:])
    for row in whole(plan.name):
        yield row[None]


def failing(name: str, error: BaseException) -> ChunkSource:
    """One tensor cannot be made, after its first piece."""

    def work(plan: TensorPlan, told: TensorStats) -> Iterator[Tensor]:
        for row in rows(plan, told):
            yield row
            if plan.name == name:
                raise error

    return work


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[Checkpoint]:
    """Two checkpoints in two files each."""
    found = []
    for role in ("base", "other"):
        folder = tmp_path_factory.mktemp(role)
        (folder / "config.json").write_text("{}")
        for part, names in (("a", NAMES[:20]), ("b", NAMES[20:])):
            tensors = {name: whole(name) for name in names}
            save_file(tensors, folder / f"{part}.safetensors", metadata={"role": role})
        places = {name: f"{'ab'[name >= NAMES[20]]}.safetensors" for name in NAMES}
        index = json.dumps({"weight_map": places})
        (folder / "model.safetensors.index.json").write_text(index)
        found.append(Checkpoint.open(folder))
    return found


@pytest.fixture(autouse=True)
def _no_thread_is_left_behind() -> Iterator[None]:
    before = threading.enumerate()
    yield
    assert threading.enumerate() == before
    assert torch.get_num_threads() == 1


def run(
    folder: Path, inputs: list[Checkpoint], work: ChunkSource = rows
) -> tuple[list[TensorFacts], dict[Path, str]]:
    with Journal(folder) as journal, CheckpointWriter(folder, SLOTS, shard_bytes=500) as writer:
        return TensorStream(work, writer, journal).write_all(PLANS, inputs, "test")


@pytest.mark.parametrize("workers", [1, 3, 16])
def test_every_tensor_is_written_and_every_file_hashed(
    tmp_path: Path, inputs: list[Checkpoint], monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(tensor_stream, "MAX_WORKERS", workers)
    told, files = run(tmp_path, inputs)
    assert told == [
        {
            "sha256": hashlib.sha256(whole(name).numpy().tobytes()).hexdigest(),
            "largest_change": float(name[1:]),
        }
        for name in NAMES
    ]
    assert files == {path: sha256_file(path) for each in inputs for path in each.weight_files()}
    found = {
        name: tensor
        for path in tmp_path.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }
    assert found.keys() == set(NAMES)
    assert all(torch.equal(found[name], whole(name)) for name in NAMES)


def test_a_file_is_hashed_just_before_its_tensors_are_read(
    tmp_path: Path, inputs: list[Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    hashed = tensor_stream._hash_file

    def noted_file(path: Path, stop: threading.Event) -> str:
        order.append(f"{path.parent.name[:4]} {path.name[0]}")
        return hashed(path, stop)

    def noted(plan: TensorPlan, told: TensorStats) -> Iterator[Tensor]:
        order.append(plan.name)
        return rows(plan, told)

    monkeypatch.setattr(tensor_stream, "MAX_WORKERS", 1)
    monkeypatch.setattr(tensor_stream, "_hash_file", noted_file)
    run(tmp_path, inputs, noted)
    assert order == ["base a", "othe a", *NAMES[:20], "base b", "othe b", *NAMES[20:]]


@pytest.mark.parametrize("workers", [1, 2, 8])
@pytest.mark.parametrize("name", [NAMES[0], NAMES[17], NAMES[-1]])
@pytest.mark.parametrize(
    "error", [PROBLEM, OSError(errno.EIO, "no"), MemoryError(), Interruption("x", next_step="y")]
)
def test_a_fault_of_a_thread_ends_the_run(
    tmp_path: Path, inputs: list[Checkpoint], monkeypatch: pytest.MonkeyPatch, workers: int,
    name: str, error: Exception,
) -> None:  # fmt: skip
    monkeypatch.setattr(tensor_stream, "MAX_WORKERS", workers)
    with pytest.raises(type(error)) as told:
        run(tmp_path, inputs, failing(name, error))
    assert told.value is error


@pytest.mark.parametrize("endless", [NAMES[0], NAMES[3]])
def test_a_fault_does_not_wait_for_others_to_finish(
    tmp_path: Path, inputs: list[Checkpoint], monkeypatch: pytest.MonkeyPatch, endless: str
) -> None:
    monkeypatch.setattr(tensor_stream, "MAX_WORKERS", 2)
    fails = failing(NAMES[9], PROBLEM)

    def work(plan: TensorPlan, told: TensorStats) -> Iterator[Tensor]:
        while plan.name == endless:
            time.sleep(0.001)
            yield torch.empty(0)
        yield from fails(plan, told)

    with pytest.raises(NumericsProblem):
        run(tmp_path, inputs, work)


def test_a_piece_too_much_is_refused(tmp_path: Path, inputs: list[Checkpoint]) -> None:
    def work(plan: TensorPlan, told: TensorStats) -> Iterator[Tensor]:
        yield from rows(plan, told)
        if plan.name == NAMES[5]:
            yield torch.ones(1)

    with pytest.raises(ShapeMismatch) as told:
        run(tmp_path, inputs, work)
    assert told.value.message == ("'t05' has 48 bytes, which cannot take 4 bytes from byte 48 on")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_threads(
    tmp_path: Path, inputs: list[Checkpoint], number: signal.Signals
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def work(plan: TensorPlan, told: TensorStats) -> Iterator[Tensor]:
        if plan.name == NAMES[10]:
            os.kill(os.getpid(), number)
        while plan.name >= NAMES[10]:
            time.sleep(0.001)
            yield torch.empty(0)
        yield from rows(plan, told)

    before = signal.signal(number, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, inputs, work)
    finally:
        signal.signal(number, before)
