"""What a validation report says of benchmarks, as types."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

MAX_NUMBER = 1e15  # magnitude beyond which a figure of a report is damaged


def _require_ordered(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError("an interval ends before it begins")
    return ends


Number = Annotated[float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER)]
OptionalNumber = Number | None  # null where it is not finite
Interval = Annotated[tuple[Number, Number], AfterValidator(_require_ordered)] | None


class ReportModel(BaseModel):
    """Facts: what is not known here is kept."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)


class PreferenceFacts(ReportModel):
    """How one model's outputs fare beside another's, by the verdicts of a judge."""

    pairs: int = Field(ge=0, description="of outputs")
    verdicts: int = Field(ge=0, description="on them that could be read")
    win_rate: Number = Field(description="share of the verdicts, a draw counting as half of one")
    win_rate_interval: Interval
    length_controlled: Number = Field(description="the same, were the outputs equally long")
    length_controlled_interval: Interval
    characters: Number = Field(description="by which its outputs are longer, in the mean")
    draws: int = Field(ge=0, description="of outputs that are the same above all")
    first_shown: OptionalNumber = Field(description="share of wins of the output shown first")
    agreement: OptionalNumber = Field(
        description="share of pairs with one winner, of those judged in both orders"
    )
    unread: int = Field(ge=0, description="answers that are no verdict, and count nowhere")


class JudgementFacts(ReportModel):
    """What a judge said of a task's outputs."""

    judge: str = Field(description="with hashes of how it is asked")
    against: str = Field(description="whose outputs both models' are held against")
    reference: PreferenceFacts | None = Field(description="its outputs beside those")
    candidate: PreferenceFacts | None = Field(description="its outputs beside those")
    direct: PreferenceFacts | None = Field(
        description="the candidate's outputs beside the reference's; null where stored verdicts "
        "have none"
    )


class DistinctCounts(ReportModel):
    """Counts of items in which those with one prompt and one target are a single item."""

    n: int = Field(ge=0)
    lost: int = Field(ge=0)
    won: int = Field(ge=0)


class TaskFacts(ReportModel):
    """One benchmark, item by item the same for both models."""

    name: str
    n: int = Field(ge=0, description="items")
    lost: int = Field(ge=0, description="right by the reference only")
    won: int = Field(ge=0, description="right by the candidate only")
    reference_accuracy: Number = Field(description="score, in [0, 1] for most metrics")
    candidate_accuracy: Number
    title: str | None = Field(default=None, description="of the column, on a card")
    benchmark: str | None = Field(default=None, description="whose mean this is part of")
    metric: str | None = None
    of: int | None = Field(default=None, description="items that the task has")
    parts: int | None = Field(default=None, description="whose means count alike")
    by_count: bool = Field(
        default=True, description="the interval of the difference follows from n, lost and won"
    )
    distinct: DistinctCounts | None = Field(
        default=None, description="where items repeat others: the counts that tests are made of"
    )
    delta: OptionalNumber = Field(
        default=None, description="candidate minus reference, item by item"
    )
    delta_interval: Interval = None
    p_value: OptionalNumber = Field(
        default=None, description="of no loss (McNemar), for this task alone"
    )
    detectable_loss: OptionalNumber = Field(
        default=None, description="found four times in five; null: not even a loss of all"
    )
    quirks: dict[str, str] = Field(default={}, description="of the protocol")
    judged: JudgementFacts | None = Field(
        default=None, description="where a judge compared outputs"
    )

    @model_validator(mode="after")
    def _require_counts(self) -> TaskFacts:
        distinct = self.distinct
        if distinct is not None and not min(1, self.n) <= distinct.n <= self.n:
            raise ValueError("distinct.n is not among the items")
        if any(each and each.lost + each.won > each.n for each in (self, distinct)):
            raise ValueError("more items are lost and won than there are")
        return self


class BenchmarkMean(ReportModel):
    """Both models' mean over the columns of a benchmark, or over benchmarks."""

    reference: Number
    candidate: Number
    delta: OptionalNumber = Field(default=None, description="candidate minus reference")
    delta_interval: Interval = None


class AverageFacts(BenchmarkMean):
    """The mean of benchmarks' means."""

    name: str = Field(description="Average only where all benchmarks of the card are there")
    complete: bool
    benchmarks: dict[str, BenchmarkMean]
