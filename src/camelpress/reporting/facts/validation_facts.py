"""What a validation report says, as types: its JSON Schema is made of them, and it is read by them.

Facts may be added without a new version. Where one changes its meaning or goes, `SCHEMA` rises.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, create_model, model_validator

from camelpress.core.errors import CheckpointProblem
from camelpress.core.settings import describe_validation_error
from camelpress.reporting.facts.task_facts import (
    AverageFacts,
    Interval,
    Number,
    OptionalNumber,
    ReportModel,
    TaskFacts,
)
from camelpress.reporting.stage_report import SCHEMA_VERSION, Report

STAGE = "validate"


class TextFigures(ReportModel):
    """Figures over some of the tokens; intervals are of 95 %, null where nothing bounds them."""

    tokens: int = Field(ge=0, description="that were scored")
    sequences: int = Field(
        ge=0,
        description="independent pieces of text: documents, or windows of a text that is one; "
        "pieces that repeat another count with it",
    )
    effective_sequences: OptionalNumber = Field(
        default=None, ge=0, description="pieces of equal size that tell as much"
    )
    repeats: int = Field(default=0, ge=0, description="pieces that repeat another")
    reference_perplexity: OptionalNumber
    candidate_perplexity: OptionalNumber
    perplexity_ratio: OptionalNumber = Field(description="candidate over reference, paired")
    perplexity_ratio_interval: Interval
    kl_mean: OptionalNumber = Field(description="KL(reference || candidate) of a token, nats")
    kl_mean_interval: Interval
    top1_agreement: OptionalNumber = Field(
        description="share of tokens with the same likeliest next one"
    )
    top1_agreement_interval: Interval
    kl_reverse_mean: OptionalNumber = Field(
        default=None, description="KL(candidate || reference), nats"
    )
    kl_reverse_mean_interval: Interval = None
    top5_agreement: OptionalNumber = None
    top5_agreement_interval: Interval = None


class TextFacts(TextFigures):
    """The same of one text."""

    name: str
    rows: int = Field(default=0, ge=0, description="of the file; 1 where it is prose")
    omissions: dict[str, dict[str, int]] = Field(
        default={}, description="what is left out of the file: unit, then reason, then count"
    )


class WindowStartFacts(ReportModel):
    """The same of the beginnings of all windows, and of the rest."""

    context: int = Field(description="tokens of a beginning")
    first: TextFigures
    rest: TextFigures | None


class ModelFacts(ReportModel):
    """One of the two models."""

    path: str
    architecture: str
    parameters: int = Field(ge=0)
    dtype: str
    bytes: int = Field(ge=0)
    bits: int | None = Field(default=None, description="of a packed weight; null: none is packed")
    group_size: int | None = Field(default=None, description="columns of a group; -1: all of them")
    sym: bool | None = None
    bits_per_weight: OptionalNumber = None
    dequantized: bool = Field(
        default=False, description="plain weights that were written out of a quantized model"
    )


def _require_edges(edges: Sequence[float], bins: int) -> None:
    """Raises ValueError unless edges rise and enclose so many bins, or both are absent."""
    if not edges and not bins:
        return
    if len(edges) != bins + 1 or any(left >= right for left, right in pairwise(edges)):
        raise ValueError(f"{bins} bins need {bins + 1} edges that rise")


class DivergenceHistogram(ReportModel):
    """How many tokens diverge so much; there is one more edge than there are counts."""

    edges: list[Number]
    counts: list[Annotated[int, Field(ge=0)]]

    @model_validator(mode="after")
    def _require_bins(self) -> DivergenceHistogram:
        _require_edges(self.edges, len(self.counts))
        if self.edges and (self.edges[0] < 0 or self.edges[1] <= 0):
            raise ValueError("a divergence is below 0")
        return self


class BinnedMeans(ReportModel):
    """Means over stretches; there is one more edge than there are stretches."""

    edges: list[Number]
    kl_mean: list[OptionalNumber]
    tokens: list[Number]

    @model_validator(mode="after")
    def _require_stretches(self) -> BinnedMeans:
        _require_edges(self.edges, len(self.tokens))
        _require_edges(self.edges, len(self.kl_mean))
        return self


class PositionMeans(BinnedMeans):
    """By the place in the window of the token that predicts."""

    log_ratio: list[OptionalNumber] = Field(description="mean of ln p(reference) - ln p(candidate)")

    @model_validator(mode="after")
    def _require_ratios(self) -> PositionMeans:
        _require_edges(self.edges, len(self.log_ratio))
        return self


class BlockError(ReportModel):
    """What leaves one decoder block."""

    relative_error: OptionalNumber = Field(
        description="of hidden states, token by token: root of the mean squared share"
    )
    sqnr_db: OptionalNumber = Field(default=None, description="the same as signal to noise, dB")
    worst: bool = Field(default=False, description="adds most to the squared error")


class NonFiniteCounts(ReportModel):
    """Predictions with a logit that is not finite; more than none are refused."""

    reference: int = Field(ge=0)
    candidate: int = Field(ge=0)


class NoiseFloor(ReportModel):
    """The reference against itself, computed otherwise: what no candidate could be blamed for."""

    kl_mean: OptionalNumber
    perplexity_ratio_interval: Interval = None


class ProbabilityChange(ReportModel):
    """Of the probability of the token that came, candidate minus reference."""

    mean: OptionalNumber
    rms: OptionalNumber


class StoreReference(ReportModel):
    """The store that stood for the reference."""

    top_k: int = Field(description="likeliest tokens that it keeps; 0: all")
    samples: int = Field(description="tokens drawn from all others")
    remainder_mass: OptionalNumber = Field(description="mean probability of all others")
    kl_bounds: tuple[OptionalNumber, OptionalNumber] = Field(
        description="that need no estimate, nats"
    )


class ValidateFacts(TextFigures):
    """Everything that was found."""

    protocol: str
    reference: ModelFacts
    candidate: ModelFacts
    kl_percentiles: dict[str, OptionalNumber]
    kl_percentiles_interval: dict[str, Interval] = {}
    kl_histogram: DivergenceHistogram
    by_position: PositionMeans
    early: WindowStartFacts | None = Field(description="null where no text was scored")
    texts: list[TextFacts]
    kl_by_confidence: BinnedMeans | None = Field(
        default=None, description="by the probability of the reference's likeliest next token"
    )
    blocks: list[BlockError] | None = None
    non_finite: NonFiniteCounts | None = None
    noise_floor: NoiseFloor | None = None
    tasks: list[TaskFacts] = []
    tasks_missing: dict[str, str] = Field(default={}, description="and why; none counts as 0")
    averages: AverageFacts | None = None
    probability_change: ProbabilityChange | None = None
    vocabularies: dict[str, int] | None = Field(default=None, description="ids of each model")
    store: StoreReference | None = None

    @model_validator(mode="after")
    def _require_own_names(self) -> ValidateFacts:
        for each in (self.texts, self.tasks):
            if len({one.name for one in each}) < len(each):
                raise ValueError("two texts or two tasks have one name")
        return self

    @model_validator(mode="after")
    def _require_what_pages_show(self) -> ValidateFacts:
        if self.tokens and "99" not in self.kl_percentiles:
            raise ValueError("kl_percentiles lacks 99")
        if self.tokens and not self.texts:
            raise ValueError("tokens were scored, but texts is empty")
        if self.tokens and len(self.kl_histogram.counts) < 2:
            raise ValueError("kl_histogram has fewer than 2 bins")
        return self


def read_validation(path: Path) -> Report:
    """A validation report that is whole.

    Args:
        path: the file, or the folder that it lies in.
    Raises:
        CheckpointProblem: missing, of another stage or version, or damaged.
    """
    file = path / "report.json" if path.is_dir() else path
    report = Report.read_report(file)
    if report.stage != STAGE:
        raise CheckpointProblem(
            f"{file} is a report of {report.stage}", next_step="give one that validate wrote"
        )
    try:
        ValidateFacts.model_validate_json(json.dumps(report.facts))
    except ValidationError as error:
        raise CheckpointProblem(
            f"{file} is damaged (facts: {describe_validation_error(error)})",
            next_step="validate again",
        ) from error
    return report


def validation_schema() -> dict[str, Any]:
    """The JSON Schema of report.json."""
    model = create_model(
        "ValidationReport",
        __base__=Report,
        __doc__=f"report.json of camelpress, version {SCHEMA_VERSION}.",
        facts=(ValidateFacts, ...),
    )
    told = model.model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **told}
