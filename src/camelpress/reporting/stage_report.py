"""Report of a stage: one JSON file beside the output, and the next stage's only source."""

from __future__ import annotations

import json
import re
import resource
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from camelpress import __version__
from camelpress.core.errors import CheckpointProblem
from camelpress.core.exit_codes import ExitCode
from camelpress.core.files.file_recognizer import unreadable_file_problem
from camelpress.core.files.regular_files import read_regular
from camelpress.core.input_limits import MAX_JSON_BYTES
from camelpress.core.settings import Settings, describe_validation_error

MIN_PIECES = 10  # pieces of text of equal size, or items, below which no check is decided
SCHEMA_VERSION = 1  # version of the JSON; it rises when a key changes its meaning or disappears


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


class Report(Settings):
    """Report of one stage. `facts` are equal from run to run, `cost` is not."""

    schema_version: int = Field(default=SCHEMA_VERSION, description="version of this JSON")
    stage: str
    version: str = Field(default=__version__, description="version of camelpress")
    inputs: dict[str, str] = Field(description="sha256 of each input")
    outputs: dict[str, str] = Field(default={}, description="sha256 of each output")
    files: tuple[str, ...] = Field(
        default=(), description="names of all files of the output; --force may delete them"
    )
    settings: dict[str, Any]
    facts: dict[str, Any]
    checks: tuple[Check, ...] = ()
    verdict: Verdict | None = None
    cost: dict[str, float] = Field(default={}, description="seconds and peak_bytes")

    @property
    def exit_code(self) -> ExitCode:
        """Exit code of a command that ends with this report's verdict; PROBLEM without one."""
        return self.verdict.exit_code if self.verdict else ExitCode.PROBLEM

    def write(self, path: Path) -> None:
        """Writes the report as JSON."""
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read_report(cls, path: Path) -> Report:
        """Reads a report that `write` wrote.

        Raises:
            CheckpointProblem: The file is missing, is no report, or has another version.
        """
        try:
            text = read_regular(path, MAX_JSON_BYTES).decode("utf-8")
            _require_version(text, path)
            return cls.model_validate_json(text)
        except (OSError, UnicodeDecodeError) as error:
            if path.parent.is_file():
                raise CheckpointProblem(
                    f"{path.parent} is a file", next_step="give the folder of the report"
                ) from error
            raise unreadable_file_problem(
                path, f"{path} cannot be read", next_step="run the stage that writes it"
            ) from error
        except ValidationError as error:
            raise unreadable_file_problem(
                path,
                f"{path} is not a report ({describe_validation_error(error)})",
                next_step="run the stage that writes it again",
            ) from error


def _require_version(text: str, path: Path) -> None:
    """Raises CheckpointProblem for a report of another schema version."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return  # the model names the fault
    version = SCHEMA_VERSION
    if isinstance(record, dict):
        version = record.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise CheckpointProblem(
            f"{path} is a report of version {version!r}, and this is camelpress {__version__}, "
            f"which reads version {SCHEMA_VERSION}",
            next_step="read it with the camelpress that wrote it, or run the stage again",
        )


class Stopwatch:
    """Measures the seconds since its creation and the peak memory of this process."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def cost(self) -> dict[str, float]:
        """Returns the seconds and the peak resident memory in bytes."""
        return {
            "seconds": round(time.monotonic() - self._start, 3),
            "peak_bytes": peak_bytes(),
        }


def peak_bytes() -> int:
    """Returns the peak resident memory of this program, in bytes.

    Linux counts it per program. The count of `getrusage` starts from the parent's memory.
    """
    peak = _status("VmHWM")
    if peak is not None:
        return peak
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident_bytes() -> int:
    """Returns the resident memory of this program in bytes, or its peak outside Linux."""
    resident = _status("VmRSS")
    return peak_bytes() if resident is None else resident


def _status(key: str) -> int | None:
    status = Path("/proc/self/status")
    if status.is_file():
        text = status.read_text(encoding="utf-8")
        if match := re.search(rf"^{key}:\s+(\d+) kB$", text, re.MULTILINE):
            return int(match[1]) * 1024
    return None
