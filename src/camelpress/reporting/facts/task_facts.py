"""Typed facts of the benchmarks in a validation report."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from camelpress.reporting.facts_model import FactsModel, Interval, Number, OptionalNumber


class PreferenceFacts(FactsModel):
    """Results of one model's outputs against another's, by the verdicts of a judge."""

    pairs: int = Field(ge=0, description="pairs of outputs")
    verdicts: int = Field(ge=0, description="readable verdicts on the pairs")
    win_rate: Number = Field(description="share of wins among the verdicts; a draw counts half")
    win_rate_interval: Interval
    length_controlled: Number = Field(description="win rate at equal length of the outputs")
    length_controlled_interval: Interval
    characters: Number = Field(description="mean excess length of its outputs, in characters")
    draws: int = Field(ge=0, description="draws, mostly of identical outputs")
    first_shown: OptionalNumber = Field(description="share of wins of the output in first place")
    agreement: OptionalNumber = Field(
        description="share of pairs with the same winner in both orders"
    )
    unread: int = Field(ge=0, description="answers without a verdict; they count nowhere")


class JudgementFacts(FactsModel):
    """Verdicts of a judge on a task's outputs."""

    judge: str = Field(description="judge model, with hashes of its prompts")
    against: str = Field(description="owner of the outputs that both models compete with")
    reference: PreferenceFacts | None = Field(description="the reference's outputs against them")
    candidate: PreferenceFacts | None = Field(description="the candidate's outputs against them")
    direct: PreferenceFacts | None = Field(
        description="the candidate's outputs against the reference's; null if no verdicts are "
        "stored"
    )


class DistinctCounts(FactsModel):
    """Counts of distinct items; items with equal prompt and target count once."""

    n: int = Field(ge=0)
    lost: int = Field(ge=0)
    won: int = Field(ge=0)


class TaskFacts(FactsModel):
    """One benchmark on the same items for both models."""

    name: str
    n: int = Field(ge=0, description="number of items")
    lost: int = Field(ge=0, description="items that only the reference answers right")
    won: int = Field(ge=0, description="items that only the candidate answers right")
    reference_accuracy: Number = Field(description="score, in [0, 1] for most metrics")
    candidate_accuracy: Number
    title: str | None = Field(default=None, description="title of the card's column")
    benchmark: str | None = Field(default=None, description="benchmark with this task in its mean")
    metric: str | None = None
    of: int | None = Field(default=None, description="items of the whole task")
    parts: int | None = Field(default=None, description="parts of equal weight in the mean")
    by_count: bool = Field(
        default=True,
        description="true if n, lost and won give the interval of the difference",
    )
    distinct: DistinctCounts | None = Field(
        default=None, description="counts of distinct items for the tests, if items repeat"
    )
    delta: OptionalNumber = Field(
        default=None, description="mean of candidate minus reference over items"
    )
    delta_interval: Interval = None
    p_value: OptionalNumber = Field(
        default=None, description="p-value of no loss (McNemar) for this task alone"
    )
    detectable_loss: OptionalNumber = Field(
        default=None, description="loss found four times in five; null: not even a total loss"
    )
    quirks: dict[str, str] = Field(default={}, description="quirks of the protocol")
    judged: JudgementFacts | None = Field(
        default=None, description="verdicts of a judge, if one compared outputs"
    )

    @property
    def label(self) -> str:
        """Title of the card's column, or the name of a task without one."""
        return self.title or self.name

    @property
    def difference(self) -> float:
        """Candidate's score minus the reference's."""
        return self.candidate_accuracy - self.reference_accuracy

    @model_validator(mode="after")
    def _require_counts(self, info: Any) -> TaskFacts:
        if info.context != "strict":
            return self
        distinct = self.distinct
        if distinct is not None and not min(1, self.n) <= distinct.n <= self.n:
            raise ValueError("distinct.n is not among the items")
        if any(counts and counts.lost + counts.won > counts.n for counts in (self, distinct)):
            raise ValueError("more items are lost and won than there are")
        return self


class BenchmarkMean(FactsModel):
    """Mean of both models over the columns of a benchmark, or over benchmarks."""

    reference: Number
    candidate: Number
    delta: OptionalNumber = Field(default=None, description="candidate minus reference")
    delta_interval: Interval = None

    @property
    def difference(self) -> float:
        """Candidate's mean minus the reference's."""
        return self.candidate - self.reference


class AverageFacts(BenchmarkMean):
    """Mean over the means of benchmarks."""

    name: str = Field(description="Average, if all benchmarks of the card are present")
    complete: bool
    missing: list[str] = Field(
        default=[], description="benchmarks of the card that are not in the mean"
    )
    benchmarks: dict[str, BenchmarkMean]
