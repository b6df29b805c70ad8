"""States are the same in every home; only what is copied and what a kill loses differ."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from torch import Tensor

import elsewhere
from camelpress.core.checkpoint.checkpoint_writer import tensor_bytes
from camelpress.core.progress import use_listener
from camelpress.inference.model.token_batches import TokenBatches, device_batches, put_batch
from camelpress.inference.streaming import home_choice, state_home
from camelpress.inference.streaming.home_choice import choose_home
from camelpress.inference.streaming.process_group import ProcessGroup
from camelpress.inference.streaming.state_home import FileHome, MemoryHome, StateHome
from camelpress.inference.streaming.token_shards import TokenShard
from notes import Notes

CPU = torch.device("cpu")
HOMES: list[Callable[[], StateHome]] = [FileHome, lambda: MemoryHome(CPU)]
SHAPE = (7, 3)


def some_values(seed: int = 0) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def sha256(values: Tensor) -> str:
    return hashlib.sha256(tensor_bytes(values)).hexdigest()


@pytest.mark.parametrize("home", HOMES)
def test_a_home_returns_what_was_written_and_saves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Callable[[], StateHome]
) -> None:
    monkeypatch.setattr(state_home, "SAVE_CHUNK_BYTES", 24)  # two rows
    place, path = home(), tmp_path / "states"
    for seed in range(2):
        place.write(path, some_values(seed))
        assert torch.equal(place.read(path, SHAPE, torch.float32), some_values(seed))
        assert place.save(path) == sha256(some_values(seed))
        assert path.read_bytes() == bytes(tensor_bytes(some_values(seed)))


def test_memory_is_read_and_written_without_a_copy(tmp_path: Path) -> None:
    home, path = MemoryHome(CPU), tmp_path / "states"
    values = home.allocate(path, SHAPE, torch.float32)
    home.write(path, values.copy_(some_values()))
    assert home.read(path, SHAPE, torch.float32) is values
    assert home.allocate(path, SHAPE, torch.float32) is values


def test_what_is_written_to_memory_is_no_longer_the_writer_s(tmp_path: Path) -> None:
    home, values = MemoryHome(CPU), some_values()
    for name in ("hidden", "reference"):
        home.write(tmp_path / name, values)
    home.allocate(tmp_path / "hidden", SHAPE, torch.float32).zero_()
    assert torch.equal(home.read(tmp_path / "reference", SHAPE, torch.float32), some_values())


def test_a_resumed_run_reads_files_into_memory(tmp_path: Path) -> None:
    FileHome().write(tmp_path / "states", some_values())
    home = MemoryHome(CPU)
    assert home.save(tmp_path / "states") == sha256(some_values())
    assert torch.equal(home.read(tmp_path / "states", SHAPE, torch.float32), some_values())


def test_memory_of_a_gpu(tmp_path: Path) -> None:
    with elsewhere.pretended() as device:
        home, path = MemoryHome(device), tmp_path / "states"
        home.write(path, some_values())
        found = home.read(path, SHAPE, torch.float32)
        assert found.device == device
        assert torch.equal(found.cpu(), some_values())
        assert home.save(path) == sha256(some_values())
        again = MemoryHome(device).read(path, SHAPE, torch.float32)
        assert again.device == device


# --- the choice -----------------------------------------------------------------------------------


# fmt: off
CHOICES = [  # bytes of the states, device, free on it, free on the host; where they are
    (600,  "cuda:0", 1000, 0,     "on cuda:0"),
    (601,  "cuda:0", 1000, 10000, "in host memory"),
    (601,  "cuda:0", 1000, 2403,  "in files"),
    (1,    "cpu",    None, 1000,  "in files"),
    (251,  "cpu",    None, None,  "in files"),
]
# fmt: on


@pytest.mark.parametrize(("state_bytes", "name", "on_device", "on_host", "place"), CHOICES)
def test_states_are_where_they_fit(
    monkeypatch: pytest.MonkeyPatch,
    state_bytes: int,
    name: str,
    on_device: int | None,
    on_host: int | None,
    place: str,
) -> None:
    free = {"cpu": on_host, "cuda": on_device}
    monkeypatch.setattr(home_choice, "free_bytes", lambda device: free[device.type])
    notes = Notes()
    with use_listener(notes):
        home = choose_home(state_bytes, torch.device(name), ProcessGroup())
    has_choice = name != "cpu"
    assert notes.heard == [f"hidden states: 0.00 GB {place}"] * has_choice
    assert home.in_memory is (place != "in files")
    assert isinstance(home, MemoryHome if home.in_memory else FileHome)


def test_every_rank_has_a_gpu_for_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home_choice, "free_bytes", lambda device: 1000)
    team = ProcessGroup(0, 4)
    monkeypatch.setattr(ProcessGroup, "broadcast", lambda self, make: make())
    assert choose_home(2400, elsewhere.CUDA, team).in_memory
    assert not choose_home(2401, elsewhere.CUDA, team).in_memory


def test_without_states_nothing_is_said() -> None:
    notes = Notes()
    with use_listener(notes):
        assert not choose_home(0, CPU, ProcessGroup()).in_memory
    assert notes.heard == []


# --- saves in the background ----------------------------------------------------------------------


class Later(Executor):
    """An executor whose work ends when it is told to."""

    def __init__(self) -> None:
        self.future: Future[str] = Future()

    def submit(self, *work: Any, **options: Any) -> Future[Any]:
        return self.future


def test_states_are_not_overwritten_before_they_are_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = TokenShard(0, TokenBatches([[1] * 7], limit=9), tmp_path, states=("hidden",))
    shard.home = MemoryHome(CPU)
    threads, waited = Later(), Event()
    result = threads.future.result

    def wait() -> str:
        waited.set()
        return result()

    monkeypatch.setattr(threads.future, "result", wait)
    shard.start_save(4, threads)
    shard.select_block(4)
    shard.allocate_states("hidden", 3, torch.float32, after=True)  # has the other version
    assert not waited.is_set()
    threads.future.set_result("hash")
    shard.select_block(5)
    shard.allocate_states("hidden", 3, torch.float32, after=True)
    assert waited.is_set()


# --- copies ahead ---------------------------------------------------------------------------------


class Streams:
    """Streams of a GPU that is not there; it lists the copies, and who waits for which."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def Stream(self, device: torch.device) -> Streams:  # noqa: N802 - as in torch
        return self

    @contextmanager
    def stream(self, side: Streams) -> Iterator[None]:
        self.events.append("copy")
        yield

    def record_event(self) -> int:
        return self.events.count("copy")

    def current_stream(self, device: torch.device) -> Streams:
        return self

    def wait_event(self, event: int) -> None:
        self.events.append(event)


def test_pinned_states_are_copied_one_batch_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams()
    for name in ("Stream", "stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(streams, name))
    monkeypatch.setattr(Tensor, "is_pinned", lambda self: True)
    monkeypatch.setattr(Tensor, "record_stream", lambda self, stream: None)
    sequences = TokenBatches([[1, 2], [3], [4, 5]], limit=9, batch_tokens=2)
    hidden, passed = torch.arange(10.0).reshape(5, 2), torch.zeros(5, 2)
    with elsewhere.pretended() as device:
        batches = sequences.batches
        for batch, values in zip(batches, device_batches(hidden, batches, device), strict=True):
            streams.events.append("compute")
            assert values.device == device
            put_batch(passed, batch, values)
    assert torch.equal(passed, hidden)
    assert streams.events == ["copy", "copy", 1, "compute", "copy", 2, "compute", 3, "compute"]
