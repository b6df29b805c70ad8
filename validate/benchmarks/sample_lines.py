"""Reads the samples of a report: JSON lines, one benchmark item with both answers per line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from camelpress.core.errors import CheckpointProblem
from camelpress.core.files.json_files import parse_json
from camelpress.core.files.regular_files import read_regular
from camelpress.core.input_limits import MAX_SAMPLES_BYTES
from camelpress.core.settings import describe_validation_error


class _OpenModel(BaseModel):
    """A model of required fields; extra fields stay unchanged."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class PreferenceLine(_OpenModel):
    """The verdict of a judge on one comparison, from the view of the first output."""

    shown_first: bool
    won: float | None = Field(description="1: win, 0: loss, 0.5: draw, null: no verdict")


class SampleAnswer(_OpenModel):
    """The answer of one model to an item."""

    score: float
    responses: Any = Field(description="completions, or log-likelihoods of the choices")
    chosen: str | None = Field(default=None, description="text of the most likely choice")
    verdicts: list[PreferenceLine] | None = None


class SampleLine(_OpenModel):
    """One benchmark item with the answers of both models."""

    task: str
    item: str | int
    flip: Literal["same", "lost", "won"]
    prompt: str
    target: Any
    reference: SampleAnswer
    candidate: SampleAnswer
    judge: str | None = None
    direct: list[PreferenceLine] | None = None

    @model_validator(mode="after")
    def _require_verdicts(self) -> SampleLine:
        if self.judge is not None and None in (self.reference.verdicts, self.candidate.verdicts):
            raise ValueError("a judge is named, but an answer has no verdicts")
        return self


def read_samples(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the samples of a file as plain data.

    Raises:
        CheckpointProblem: The file cannot be read, or a line is not a sample.
    """
    try:
        content = read_regular(path, MAX_SAMPLES_BYTES)
    except OSError as error:
        raise CheckpointProblem(
            f"{path} cannot be read ({error.strerror})", next_step="validate again"
        ) from error
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line:
            yield _parse_sample(line, f"{path}:{number}")


def _parse_sample(line: bytes, place: str) -> dict[str, Any]:
    try:
        sample: dict[str, Any] = parse_json(line)
        SampleLine.model_validate(sample)
    except ValidationError as error:
        raise _invalid_sample(place, describe_validation_error(error)) from error
    except ValueError as error:
        raise _invalid_sample(place, str(error)) from error
    return sample


def _invalid_sample(place: str, reason: str) -> CheckpointProblem:
    return CheckpointProblem(f"{place} is not a sample ({reason})", next_step="validate again")
