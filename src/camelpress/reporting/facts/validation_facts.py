"""Typed facts of the report of validate."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, Strict, create_model, model_validator

from camelpress.reporting.facts.task_facts import AverageFacts, TaskFacts
from camelpress.reporting.facts_model import (
    FactsModel,
    Interval,
    NonNegativeNumber,
    Number,
    OptionalNumber,
)
from camelpress.reporting.metrics import METRICS


class TextCounts(FactsModel):
    """Counts of a set of tokens."""

    tokens: int = Field(ge=0, description="scored tokens")
    sequences: int = Field(
        ge=0,
        description="independent pieces of text: documents, or windows of a single document; "
        "a repeated piece counts once",
    )
    effective_sequences: NonNegativeNumber | None = Field(
        default=None, description="number of equally large pieces with the same information"
    )
    repeats: int = Field(default=0, ge=0, description="repeated pieces")


def _metric_fields() -> dict[str, Any]:
    """Returns a field per computed metric and one for its interval, required ones first."""
    fields: dict[str, Any] = {}
    computed = [metric for metric in METRICS.values() if metric.is_computed]
    for metric in sorted(computed, key=lambda metric: not metric.is_required):
        default = ... if metric.is_required else None
        note = metric.text("fact_note") or None
        fields[metric.key] = (OptionalNumber, Field(default=default, description=note))
        if metric.has_interval:
            fields[f"{metric.key}_interval"] = (Interval, default)
    return fields


if TYPE_CHECKING:
    TextFigures = TextCounts
else:
    TextFigures = create_model(
        "TextFigures",
        __base__=TextCounts,
        __doc__="Figures over a set of tokens, with 95 % intervals; null is an unbounded interval.",
        **_metric_fields(),
    )


class TextFacts(TextFigures):
    """Figures of one text."""

    name: str
    rows: int = Field(default=0, ge=0, description="rows of the file; 1 for prose")
    omissions: dict[str, dict[str, int]] = Field(
        default={}, description="omitted parts of the file: unit, then reason, then count"
    )


class WindowStartFacts(FactsModel):
    """Figures of the beginnings of all windows and of their remainders."""

    context: int = Field(description="length of a beginning in tokens")
    first: TextFigures | None = Field(description="null without a scored token there")
    rest: TextFigures | None


class ModelFacts(FactsModel):
    """Facts of one model."""

    path: str
    architecture: str
    parameters: int = Field(ge=0)
    dtype: str
    bytes: int = Field(ge=0)
    bits: int | None = Field(
        default=None, description="bits of a packed weight; null: no packed weights"
    )
    group_size: int | None = Field(default=None, description="columns of a group; -1: all columns")
    sym: bool | None = None
    bits_per_weight: OptionalNumber = None
    dequantized: bool = Field(
        default=False, description="true for plain weights dequantized from a quantized model"
    )


def _require_edges(edges: Sequence[float], bins: int) -> None:
    """Raises ValueError unless the edges rise and enclose the bins, or both are absent."""
    if not edges and not bins:
        return
    if len(edges) != bins + 1 or any(left >= right for left, right in pairwise(edges)):
        raise ValueError(f"{bins} bins need {bins + 1} edges that rise")


class DivergenceHistogram(FactsModel):
    """Histogram of the divergence of tokens, with one edge more than counts."""

    edges: list[Number]
    counts: list[Annotated[int, Field(ge=0)]]

    @model_validator(mode="after")
    def _require_bins(self, info: Any) -> DivergenceHistogram:
        if info.context != "strict":
            return self
        _require_edges(self.edges, len(self.counts))
        if self.edges and (self.edges[0] < 0 or self.edges[1] <= 0):
            raise ValueError("a divergence is below 0")
        return self


class BinnedMeans(FactsModel):
    """Means over stretches, with one edge more than stretches."""

    edges: list[Number]
    kl_mean: list[OptionalNumber]
    tokens: list[Number]

    @model_validator(mode="after")
    def _require_stretches(self, info: Any) -> BinnedMeans:
        if info.context != "strict":
            return self
        _require_edges(self.edges, len(self.tokens))
        _require_edges(self.edges, len(self.kl_mean))
        return self


class PositionMeans(BinnedMeans):
    """Means by the position of the predicting token in its window."""

    log_ratio: list[OptionalNumber] = Field(description="mean of ln p(reference) - ln p(candidate)")

    @model_validator(mode="after")
    def _require_ratios(self, info: Any) -> PositionMeans:
        if info.context != "strict":
            return self
        _require_edges(self.edges, len(self.log_ratio))
        return self


class BlockError(FactsModel):
    """Error of the hidden states behind one decoder block."""

    relative_error: OptionalNumber = Field(
        description="root mean square over tokens of the relative error of hidden states"
    )
    sqnr_db: OptionalNumber = Field(
        default=None, description="signal-to-quantization-noise ratio, dB"
    )
    worst: bool = Field(default=False, description="adds most to the squared error")


class NonFiniteCounts(FactsModel):
    """Counts of predictions with a logit that is not finite; any count above 0 is refused."""

    reference: int = Field(ge=0)
    candidate: int = Field(ge=0)


class NoiseFloor(FactsModel):
    """Figures of the reference against itself, computed in another way."""

    kind: str = Field(default="none", description="changed condition of the second computation")
    kl_mean: OptionalNumber
    perplexity_ratio_interval: Interval = None


class ProbabilityChange(FactsModel):
    """Change of the probability of the actual token, candidate minus reference."""

    mean: OptionalNumber
    rms: OptionalNumber


class StoreReference(FactsModel):
    """Store in the place of the reference."""

    top_k: int = Field(description="stored likeliest tokens; 0: all")
    samples: int = Field(description="tokens drawn from the remainder")
    remainder_mass: OptionalNumber = Field(description="mean probability of the remainder")
    kl_bounds: Annotated[tuple[OptionalNumber, OptionalNumber], Strict(False)] = Field(
        description="bounds without an estimate, nats"
    )


class OverlapFacts(FactsModel):
    """Overlap of the scored texts with the calibration of the candidate."""

    checked: bool | None = Field(
        default=None, description="false if the candidate has no record of its calibration"
    )


class ValidateFacts(TextFigures):
    """Facts of a validation."""

    protocol: str
    reference: ModelFacts
    candidate: ModelFacts
    kl_percentiles: dict[str, OptionalNumber]
    kl_percentiles_interval: dict[str, Interval] = {}
    kl_histogram: DivergenceHistogram
    by_position: PositionMeans
    early: WindowStartFacts | None = Field(description="null without a scored text")
    texts: list[TextFacts]
    kl_by_confidence: BinnedMeans | None = Field(
        default=None, description="means by the probability of the reference's likeliest next token"
    )
    blocks: list[BlockError] | None = None
    non_finite: NonFiniteCounts | None = None
    noise_floor: NoiseFloor | None = None
    tasks: list[TaskFacts] = []
    tasks_missing: dict[str, str] = Field(
        default={}, description="benchmark to the reason it is missing; none counts as 0"
    )
    averages: AverageFacts | None = None
    probability_change: ProbabilityChange | None = None
    vocabularies: dict[str, int] | None = Field(default=None, description="ids of each model")
    store: StoreReference | None = None
    overlap: OverlapFacts | None = None

    @model_validator(mode="after")
    def _require_unique_names(self, info: Any) -> ValidateFacts:
        if info.context != "strict":
            return self
        for parts in (self.texts, self.tasks):
            if len({part.name for part in parts}) < len(parts):
                raise ValueError("two texts or two tasks have one name")
        return self

    @model_validator(mode="after")
    def _require_what_pages_show(self, info: Any) -> ValidateFacts:
        if info.context != "strict":
            return self
        if self.tokens and "99" not in self.kl_percentiles:
            raise ValueError("kl_percentiles lacks 99")
        if self.tokens and not self.texts:
            raise ValueError("tokens were scored, but texts is empty")
        if self.tokens and len(self.kl_histogram.counts) < 2:
            raise ValueError("kl_histogram has fewer than 2 bins")
        return self
