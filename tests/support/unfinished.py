"""An output that is still being made: where it lies, how far it is, and runs that end there."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from camelpress.core.errors import Interruption
from camelpress.core.output.journal import JOURNAL_FILE, Journal
from processes import interrupt


def beside(out: Path) -> Path:
    """Where an output lies until it is complete."""
    return out.with_name(f"{out.name}.partial")


def finished(out: Path) -> int:
    """How many blocks its journal has."""
    path = beside(out) / JOURNAL_FILE
    lines = path.read_bytes().splitlines() if path.exists() else []
    return sum(line.startswith(b'{"block ') and line.endswith(b"}}") for line in lines)


def stop(work: Callable[[], object], out: Path, *, after: int) -> None:
    """Work until so many blocks are finished."""
    add, calls = Journal.add, iter(range(1, 1000))

    def add_and_stop(journal: Journal, name: str, facts: dict[str, Any]) -> None:
        add(journal, name, facts)
        if next(calls) == after:
            raise Interruption("stopped", next_step="go on")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "add", add_and_stop)
        with pytest.raises(Interruption):
            work()
    assert finished(out) == after


def terminated(work: Callable[[], object]) -> Callable[[], None]:
    """The same work, in a process that gets a SIGTERM when the first block is finished."""

    def stopped() -> None:
        interrupt(Journal, "add", 0, lambda: os.kill(os.getpid(), signal.SIGTERM), late=True)
        work()

    return stopped
