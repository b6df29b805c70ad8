"""Requirements of an inference engine as rows of a table, and the finding for each row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from camelpress.compat.gptq_checkpoint import GptqCheckpoint


class FindingStatus(StrEnum):
    """Status of a finding.

    PASS: the requirement holds.
    NOTE: the engine runs, but slower, with an option, or not in every version.
    FAIL: the engine refuses the checkpoint or computes with wrong weights.
    """

    PASS = "PASS"
    NOTE = "NOTE"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Finding:
    """Result of one check: status, reason and, unless it passes, the next step."""

    status: FindingStatus
    reason: str
    next_step: str = ""


RequirementCheck = Callable[[GptqCheckpoint], Finding]


@dataclass(frozen=True)
class Requirement:
    """One row of an engine's table: the name of a requirement and its check."""

    name: str
    check: RequirementCheck


@dataclass(frozen=True)
class InferenceEngine:
    """An inference engine, its requirements and their source.

    Args:
        name: name of the engine in its own spelling.
        source: repository, commits and files the requirements were read from.
        hardware: required hardware, which no checkpoint states.
        requirements: rows in the order of a report.
    """

    name: str
    source: str
    hardware: str
    requirements: tuple[Requirement, ...]


def passes(reason: str) -> Finding:
    """Returns a finding with status PASS."""
    return Finding(FindingStatus.PASS, reason)


def warns(reason: str, next_step: str) -> Finding:
    """Returns a finding with status NOTE: the engine runs with a restriction."""
    return Finding(FindingStatus.NOTE, reason, next_step)


def fails(reason: str, next_step: str) -> Finding:
    """Returns a finding with status FAIL: the engine refuses or misreads the checkpoint."""
    return Finding(FindingStatus.FAIL, reason, next_step)
