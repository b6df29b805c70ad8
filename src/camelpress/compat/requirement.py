"""What an engine asks of a checkpoint, as rows of a table, and what was found for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from camelpress.compat.gptq_checkpoint import GptqCheckpoint


class FindingStatus(StrEnum):
    """FAIL: the engine refuses the checkpoint, or computes with other weights than are meant.

    NOTE: it runs, but slower, with an option, or not in every version.
    """

    PASS = "PASS"
    NOTE = "NOTE"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Finding:
    """The answer to one requirement; what does not pass says what to do next."""

    status: FindingStatus
    reason: str
    next_step: str = ""


RequirementCheck = Callable[[GptqCheckpoint], Finding]


@dataclass(frozen=True)
class Requirement:
    """One requirement."""

    name: str
    check: RequirementCheck


@dataclass(frozen=True)
class InferenceEngine:
    """An engine, and where its requirements were read.

    Args:
        name: as its makers write it.
        source: repository, commit and files.
        needs: what it runs on, which no look at a checkpoint can tell.
        rows: in the order of a report.
    """

    name: str
    source: str
    hardware: str
    requirements: tuple[Requirement, ...]


def passes(reason: str) -> Finding:
    """All is as the engine wants it."""
    return Finding(FindingStatus.PASS, reason)


def warns(reason: str, next_step: str) -> Finding:
    """It runs, with a restriction."""
    return Finding(FindingStatus.NOTE, reason, next_step)


def fails(reason: str, next_step: str) -> Finding:
    """It does not run, or not as meant."""
    return Finding(FindingStatus.FAIL, reason, next_step)
