"""Fuzz targets: a parser, valid seeds, a mutation; each input must be read or end in a Problem.

To add a target, write one function in a module of `MODULES` and register it:

    @target("lockfile", seeds=lambda folder: [VALID], mutate=either(mutate_bytes, mutate_json))
    def read_lock(content: bytes, folder: Path) -> None:
        (folder / "run.lock.json").write_bytes(content)
        Lock(folder / "run.lock.json")

`seeds` is called once with an empty folder, in which it can also prepare what the parser needs
beside the mutated file; the same folder is handed to the function with every input. Any exception
that is no Problem is a fault, as are more than `MAX_SECONDS` for one input and a growth of the
process by more than `MAX_GROWTH_BYTES`. The inputs depend on the target's name, the seed and
their number alone. `python -m tests.fuzz --help` runs long campaigns, `tests/fuzz/test_fuzz.py` a
short one of every target.
"""

from __future__ import annotations

import os
import resource
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from random import Random
from types import FrameType

from camelpress.core.errors import Problem
from mutations import Mutation, mutate_bytes

MODULES = ("fuzz_targets", "fuzz_reports", "fuzz_releases")  # modules that register targets
MAX_SECONDS = 10  # seconds for one input
MAX_GROWTH_BYTES = 2**30  # bytes by which one input may raise the peak memory of the process
MAX_MEMORY_BYTES = 6 * 2**30  # bytes of address space of one process

Seeds = Callable[[Path], Sequence[bytes]]
Parser = Callable[[bytes, Path], object]
_TARGETS: dict[str, Target] = {}


class TooSlow(BaseException):
    """One input took longer than `MAX_SECONDS`; no parser can catch this by accident."""


@dataclass(frozen=True)
class Target:
    """A parser with the seeds and the mutation of its inputs."""

    name: str
    parse: Parser
    seeds: Seeds
    mutate: Mutation


@dataclass
class Campaign:
    """The outcome of many inputs of one target."""

    target: str
    tried: int = 0
    refused: int = 0  # inputs that ended in a Problem
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)  # by exception and place
    examples: dict[str, bytes] = field(default_factory=dict)  # the first input of each fault


def target(
    name: str, *, seeds: Seeds, mutate: Mutation = mutate_bytes
) -> Callable[[Parser], Parser]:
    """Registers a parser as a fuzz target."""

    def register(parse: Parser) -> Parser:
        _TARGETS[name] = Target(name, parse, seeds, mutate)
        return parse

    return register


def targets() -> dict[str, Target]:
    """Returns every registered target by its name."""
    for module in MODULES:
        import_module(module)
    return dict(sorted(_TARGETS.items()))


def campaign(
    target: Target,
    folder: Path,
    *,
    inputs: int,
    first: int = 0,
    seed: int = 0,
    max_seconds: float = float("inf"),
) -> Campaign:
    """Tries many inputs of one target in this process.

    Args:
        target: the parser.
        folder: an empty one, for the target's files.
        inputs: how many to try at most.
        first: the number of the first.
        seed: another one gives other inputs.
        max_seconds: after which no further input is tried.
    """
    outcome = Campaign(target.name)
    seeds = target.seeds(folder)
    for content in seeds:
        _try(target, content, folder, outcome)
    outcome.tried = outcome.refused = 0
    begin = time.monotonic()
    for number in range(first, first + inputs):
        content = target.mutate(Random(f"{target.name} {seed} {number}"), seeds)  # noqa: S311
        _try(target, content, folder, outcome)
        outcome.seconds = time.monotonic() - begin
        if outcome.seconds > max_seconds:
            break
    return outcome


def run_chunk(name: str, first: int, inputs: int, seed: int) -> Campaign:
    """Tries some inputs of one target, in a process whose memory this limits."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    memory = "/dev/shm"  # noqa: S108 - a file system in memory
    place = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=place) as folder:
        return campaign(targets()[name], Path(folder), inputs=inputs, first=first, seed=seed)


def _try(target: Target, content: bytes, folder: Path, outcome: Campaign) -> None:
    before = _peak_bytes()
    outcome.tried += 1
    fault = None
    try:
        with _time_limit(MAX_SECONDS):
            target.parse(content, folder)
    except Problem as problem:
        outcome.refused += 1
        if len(str(problem).splitlines()) != 1:
            fault = "a message of several lines"
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - every one of them is a fault to be counted
        fault = _described(error)
    if _peak_bytes() - before > MAX_GROWTH_BYTES:
        fault = f"{fault or ''} memory grew by {(_peak_bytes() - before) / 1e9:.1f} GB".strip()
    if fault:
        outcome.faults[fault] += 1
        outcome.examples.setdefault(fault, content)


def _described(error: BaseException) -> str:
    """Returns the exception and the last line of this project that it passed through."""
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "site-packages" not in frame.filename and "/lib/python" not in frame.filename
    ]
    place = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "the target"
    return f"{type(error).__name__} at {place}"


@contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, _raise_too_slow)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _raise_too_slow(_: int, __: FrameType | None) -> None:
    raise TooSlow


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
