"""What an engine asks of a checkpoint, as rows of a table, and what was found for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from camelpress.compat.gptq_checkpoint import Subject


class Status(StrEnum):
    """FAIL: the engine refuses the checkpoint, or computes with other weights than are meant.

    NOTE: it runs, but slower, with an option, or not in every version.
    """

    PASS = "PASS"
    NOTE = "NOTE"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Found:
    """The answer to one requirement; what does not pass says what to do next."""

    status: Status
    reason: str
    next_step: str = ""


Check = Callable[[Subject], Found]


@dataclass(frozen=True)
class Row:
    """One requirement."""

    name: str
    check: Check


@dataclass(frozen=True)
class Engine:
    """An engine, and where its requirements were read.

    Args:
        name: as its makers write it.
        source: repository, commit and files.
        needs: what it runs on, which no look at a checkpoint can tell.
        rows: in the order of a report.
    """

    name: str
    source: str
    needs: str
    rows: tuple[Row, ...]


def passed(reason: str) -> Found:
    """All is as the engine wants it."""
    return Found(Status.PASS, reason)


def noted(reason: str, next_step: str) -> Found:
    """It runs, with a restriction."""
    return Found(Status.NOTE, reason, next_step)


def failed(reason: str, next_step: str) -> Found:
    """It does not run, or not as meant."""
    return Found(Status.FAIL, reason, next_step)
