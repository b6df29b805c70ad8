"""Report of a stage: one JSON file beside the output, and the next stage's only source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError, field_validator

from camelpress import __version__
from camelpress.core.errors import CheckpointProblem
from camelpress.core.exit_codes import ExitCode
from camelpress.core.files.file_recognizer import unreadable_file_problem
from camelpress.core.files.regular_files import read_regular
from camelpress.core.input_limits import MAX_JSON_BYTES
from camelpress.core.settings import Settings, describe_validation_error
from camelpress.reporting.facts_model import FactsModel
from camelpress.reporting.verdict import Check, Verdict

SCHEMA_VERSION = 1  # version of the JSON; it rises when a key changes its meaning or disappears

ReportT = TypeVar("ReportT", bound="Report")


class Report(Settings):
    """Report of one stage. `facts` are equal from run to run, `cost` is not.

    `report_classes` has a class for each stage, with the facts of that stage.
    """

    schema_version: int = Field(default=SCHEMA_VERSION, description="version of this JSON")
    stage: str
    version: str = Field(default=__version__, description="version of camelpress")
    inputs: dict[str, str] = Field(description="sha256 of each input")
    outputs: dict[str, str] = Field(default={}, description="sha256 of each output")
    files: tuple[str, ...] = Field(
        default=(), description="names of all files of the output; --force may delete them"
    )
    settings: dict[str, Any]
    facts: FactsModel
    checks: tuple[Check, ...] = ()
    verdict: Verdict | None = None
    cost: dict[str, float] = Field(default={}, description="seconds and peak_bytes")

    @field_validator("facts", mode="before")
    @classmethod
    def _parse_facts(cls, value: Any, info: Any) -> Any:
        kind: Any = cls.model_fields["facts"].annotation
        is_built = isinstance(value, FactsModel)
        return value if is_built else kind.model_validate(value, context=info.context)

    @property
    def exit_code(self) -> ExitCode:
        """Exit code of a command that ends with this report's verdict; PROBLEM without one."""
        return self.verdict.exit_code if self.verdict else ExitCode.PROBLEM

    def write(self, path: Path) -> None:
        """Writes the report as JSON."""
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls: type[ReportT], path: Path) -> ReportT:
        """Reads a report that `write` wrote; missing and damaged facts are None.

        Raises:
            CheckpointProblem: The file is missing, is no report, or has another version.
        """
        try:
            text = read_regular(path, MAX_JSON_BYTES).decode("utf-8")
            _require_version(text, path)
            return cls.model_validate_json(text, context="lenient")
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
