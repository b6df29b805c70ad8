"""Verdict of a check and of a report; the exit code follows from it."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field

from camelpress.core.exit_codes import ExitCode
from camelpress.core.settings import Settings

MIN_PIECES = 10  # pieces of text of equal size, or items, below which no check is decided


class Verdict(StrEnum):
    """Verdict of a check; ERROR means that it could not be evaluated and never passes."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    ERROR = "ERROR"

    @property
    def exit_code(self) -> ExitCode:
        """Exit code of a process that ends with this verdict."""
        return EXIT_CODES[self]

    @classmethod
    def combine(cls, verdicts: list[Verdict]) -> Verdict:
        """Combines the verdicts of several checks; no checks are an error."""
        for verdict in (cls.ERROR, cls.FAIL, cls.INCONCLUSIVE):
            if verdict in verdicts or not verdicts:
                return verdict
        return cls.PASS


EXIT_CODES = {
    Verdict.PASS: ExitCode.DONE,
    Verdict.FAIL: ExitCode.GATE_FAILED,
    Verdict.INCONCLUSIVE: ExitCode.INCONCLUSIVE,
    Verdict.ERROR: ExitCode.PROBLEM,
}


class Check(Settings):
    """One measured quantity held against its threshold."""

    name: str
    part: str | None = Field(
        default=None, description="judged text, task or stretch; null: everything"
    )
    verdict: Verdict
    estimate: float | None = Field(description="null if there is no estimate, which is an ERROR")
    interval: tuple[float, float] | None = Field(
        description="95 % interval; null if it is unbounded or if the estimate alone decides"
    )
    threshold: float
    direction: Literal["max", "min"] = Field(
        description="max: the estimate must not exceed the threshold; min: it must not fall below"
    )
    n: int = Field(description="tokens, or items of a task")
    clusters: int = Field(description="independent pieces of text, or items of a task")
    reason: str
