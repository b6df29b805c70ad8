"""What a stage did and found: one JSON file beside its output, the next stage's only source."""

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

MIN_PIECES = 10  # of text, equal in size, or items: fewer decide nothing (docs/numbers.md)
SCHEMA_VERSION = 1  # of the JSON; it rises when what is there changes its meaning or goes


class Verdict(StrEnum):
    """What a check says; ERROR is "could not be evaluated" and never a pass."""

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
        """The verdict over several checks; none at all is an error."""
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
        default=None, description="the text, task or stretch that is judged; null: all there is"
    )
    verdict: Verdict
    estimate: float | None = Field(description="null where there is none, which is an ERROR")
    interval: tuple[float, float] | None = Field(
        description="95 %; null where nothing bounds it, and where the estimate alone decides"
    )
    threshold: float
    direction: Literal["max", "min"] = Field(
        description="max: the estimate must not exceed it; min: not fall below"
    )
    n: int = Field(description="tokens, or items of a task")
    clusters: int = Field(description="independent pieces of text, or items of a task")
    reason: str


class Report(Settings):
    """The account of one stage. `facts` repeat themselves run by run; `cost` does not."""

    schema_version: int = Field(default=SCHEMA_VERSION, description="of this JSON")
    stage: str
    version: str = Field(default=__version__, description="of camelpress")
    inputs: dict[str, str] = Field(description="sha256 of each input")
    outputs: dict[str, str] = Field(default={}, description="sha256 of each output")
    files: tuple[str, ...] = Field(
        default=(), description="names of all files of the output, which --force may delete"
    )
    settings: dict[str, Any]
    facts: dict[str, Any]
    checks: tuple[Check, ...] = ()
    verdict: Verdict | None = None
    cost: dict[str, float] = Field(default={}, description="seconds, peak_bytes")

    @property
    def exit_code(self) -> ExitCode:
        """Exit code of a command that ends with this report's verdict; PROBLEM without one."""
        return self.verdict.exit_code if self.verdict else ExitCode.PROBLEM

    def write(self, path: Path) -> None:
        """Save as JSON."""
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read_report(cls, path: Path) -> Report:
        """Load what `write` saved.

        Raises:
            CheckpointProblem: missing, not a report, or one of another version.
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
    """A report of another version may differ in everything, so its version is what is told."""
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        return  # the model names the fault
    found = told.get("schema_version", SCHEMA_VERSION) if isinstance(told, dict) else SCHEMA_VERSION
    if found != SCHEMA_VERSION:
        raise CheckpointProblem(
            f"{path} is a report of version {found!r}, and this is camelpress {__version__}, "
            f"which reads version {SCHEMA_VERSION}",
            next_step="read it with the camelpress that wrote it, or run the stage again",
        )


class Stopwatch:
    """Seconds since it was made, and the most memory this process ever had."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def cost(self) -> dict[str, float]:
        """Seconds (s) and peak resident memory (bytes)."""
        return {
            "seconds": round(time.monotonic() - self._start, 3),
            "peak_bytes": peak_bytes(),
        }


def peak_bytes() -> int:
    """The most resident memory this program ever had.

    Linux tells it per program; `getrusage` would start from what the parent process had.
    """
    told = _status("VmHWM")
    if told is not None:
        return told
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident_bytes() -> int:
    """The resident memory of this program now, or where the system does not tell, its peak."""
    told = _status("VmRSS")
    return peak_bytes() if told is None else told


def _status(key: str) -> int | None:
    status = Path("/proc/self/status")
    if status.is_file():
        found = re.search(rf"^{key}:\s+(\d+) kB$", status.read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    return None
