"""Reads the samples of a report: JSON lines, one benchmark item with both answers a line."""

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
    """Fields that a reader depends on; others are kept as they are."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class PreferenceLine(_OpenModel):
    """The outcome of one comparison by a judge, seen from the first of two outputs."""

    shown_first: bool
    won: float | None = Field(description="1: it wins, 0: it loses, 0.5: a draw, null: no verdict")


class SampleAnswer(_OpenModel):
    """The answer of one model to an item."""

    score: float
    responses: Any = Field(description="completions, or log-likelihoods of the choices")
    chosen: str | None = Field(default=None, description="text of the likeliest choice")
    verdicts: list[PreferenceLine] | None = None


class SampleLine(_OpenModel):
    """One item of a benchmark as both models answered it."""

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
    """Yields the lines of a file of samples as plain data.

    Raises:
        CheckpointProblem: the file cannot be read, or a line is no sample.
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
    return CheckpointProblem(f"{place} is no sample ({reason})", next_step="validate again")
