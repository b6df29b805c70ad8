"""Reads a validation report strictly; gives its JSON Schema.

A new fact needs no new version. `SCHEMA_VERSION` rises if a fact changes its meaning or disappears.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError, create_model

from camelpress.core.errors import CheckpointProblem
from camelpress.core.settings import describe_validation_error
from camelpress.reporting.facts.validation_facts import ValidateFacts
from camelpress.reporting.report_classes import ValidationReport
from camelpress.reporting.stage_report import SCHEMA_VERSION

STAGE = "validate"


def read_validation(path: Path) -> ValidationReport:
    """Reads and checks a validation report.

    Args:
        path: report file, or its folder.
    Raises:
        CheckpointProblem: The report is missing, damaged, or of another stage or version.
    """
    file = path / "report.json" if path.is_dir() else path
    report = ValidationReport.read(file)
    if report.stage != STAGE:
        raise CheckpointProblem(
            f"{file} is a report of {report.stage}", next_step="give one that validate wrote"
        )
    try:
        facts = ValidateFacts.read(report.facts.record, "strict")
    except ValidationError as error:
        raise CheckpointProblem(
            f"{file} is damaged (facts: {describe_validation_error(error)})",
            next_step="validate again",
        ) from error
    return report.model_copy(update={"facts": facts})


def validation_schema() -> dict[str, Any]:
    """Returns the JSON Schema of report.json."""
    model = create_model(
        "ValidationReport",
        __base__=ValidationReport,
        __doc__=f"report.json of camelpress, version {SCHEMA_VERSION}.",
    )
    schema = model.model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
