"""An output that is still being made: where it lies, how far it is, and runs that end there."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from camelpress.core.errors import Interruption
from camelpress.core.output.journal import Journal, read_journal
from processes import interrupt


def beside(out: Path) -> Path:
    """Where an output lies until it is complete."""
    return out.with_name(f"{out.name}.partial")


def finished(out: Path) -> int:
    """After how many blocks the last states were saved."""
    names = read_journal(beside(out))
    return max((int(name.split()[1]) for name in names if name.startswith("states ")), default=0)


def stop(work: Callable[[], object], out: Path, *, after: int) -> None:
    """Work until the states after so many blocks are saved."""
    add = Journal.add

    def add_and_stop(journal: Journal, name: str, facts: dict[str, Any]) -> None:
        add(journal, name, facts)
        if name == f"states {after}":
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
