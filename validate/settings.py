"""What a recipe may say about validating, and the gate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from camelpress.core.settings import Settings
from camelpress.reporting.limit_range import ITEM_SHARE, PROBABILITY, LimitRange
from camelpress.reporting.metrics import METRICS
from camelpress.validate.judge.judge_settings import JudgeSettings


class MaxLimit(Settings):
    """The limit of a figure that should be small."""

    max: float = Field(allow_inf_nan=False)


class MinLimit(Settings):
    """The limit of a figure that should be large."""

    min: float = Field(allow_inf_nan=False)


class ExplicitSettings(Settings):
    """Settings that are written as they were said: where patterns meet, silence is no `null`."""

    @model_serializer(mode="wrap")
    def _serialize_fields(self, write: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        said = self.model_fields_set
        return {key: value for key, value in write(self).items() if key in said}


def _require_possible(limits: LimitRange, limit: float) -> None:
    if not limits.contains(limit):
        raise PydanticCustomError("limit", "{demand}", {"demand": limits.message(limit)})


def _add_limit_ranges(schema: dict[str, Any]) -> None:
    """Adds the possible limits of each figure to the JSON Schema of `Bounds`."""
    for name, measure in METRICS.items():
        ends = dict.fromkeys(("max", "min"), measure.limits.schema)
        schema["properties"][name]["properties"] = ends


class TextGate(ExplicitSettings):
    """Limits of a report's figures; `null` asks nothing.

    A figure that is asked for and not in the report is an ERROR. `measures.MEASURES` says where
    each one stands, and which limits it can meet and miss.
    """

    model_config = ConfigDict(json_schema_extra=_add_limit_ranges)

    perplexity_ratio: MaxLimit | None = Field(default=None, description="candidate over reference")
    kl_mean: MaxLimit | None = Field(default=None, description="mean divergence per token, nats")
    kl_reverse_mean: MaxLimit | None = Field(
        default=None, description="the same, from the candidate to the reference, nats"
    )
    kl_p90: MaxLimit | None = Field(default=None, description="90 % of tokens diverge less, nats")
    kl_p99: MaxLimit | None = Field(default=None, description="99 % of tokens diverge less, nats")
    kl_p99_9: MaxLimit | None = Field(
        default=None, description="99.9 % of tokens diverge less, nats"
    )
    top1_agreement: MinLimit | None = Field(
        default=None, description="share of tokens with the same likeliest next token"
    )
    top5_agreement: MinLimit | None = Field(
        default=None, description="agreement of the five likeliest next tokens"
    )
    non_finite: MaxLimit | None = Field(
        default=None, description="predictions with a logit that is not finite"
    )
    noise_floor: MaxLimit | None = Field(
        default=None, description="mean divergence that rounding alone makes, nats"
    )
    block_error: MaxLimit | None = Field(
        default=None, description="largest relative error of what leaves a block"
    )

    @field_validator(*METRICS)
    @classmethod
    def _require_possible_limit(
        cls, value: MaxLimit | MinLimit | None, info: Any
    ) -> MaxLimit | MinLimit | None:
        limits = METRICS[info.field_name].limits
        match value:
            case MaxLimit(max=limit) | MinLimit(min=limit):
                _require_possible(limits, limit)
        return value


class TaskGate(ExplicitSettings):
    """What a task must not show: a loss beyond the margin, a loss that is no accident, or both.

    A small task cannot show that a loss is small. There `significance` finds those that are not.
    """

    margin: float | None = Field(
        default=None,
        json_schema_extra={**ITEM_SHARE.schema},
        description="loss of accuracy, in items of all, that is tolerated",
    )
    significance: float | None = Field(
        default=None,
        json_schema_extra={**PROBABILITY.schema},
        description="p-value below which a loss is no accident, over all tasks that are asked so",
    )

    @field_validator("margin", "significance")
    @classmethod
    def _require_possible_limit(cls, value: float | None, info: Any) -> float | None:
        if value is not None:
            _require_possible(ITEM_SHARE if info.field_name == "margin" else PROBABILITY, value)
        return value

    @model_validator(mode="after")
    def _require_one_limit(self) -> TaskGate:
        if self.margin is None and self.significance is None:
            raise ValueError("give margin, significance or both")
        return self


class Gate(TextGate):
    """Limits that decide whether a candidate passes; `null` leaves a check out.

    The defaults are starting points for large models. The best published 4-bit LLaMA-65B has a
    perplexity ratio of 1.034; mean divergences of good 4- to 5-bit models of 8 billion parameters
    lie between 0.005 and 0.05 nats, their top-1 agreement between 90 and 97 %.
    """

    perplexity_ratio: MaxLimit | None = Field(
        default=MaxLimit(max=1.035), description="candidate over reference"
    )
    kl_mean: MaxLimit | None = Field(
        default=MaxLimit(max=0.03), description="mean divergence per token, nats"
    )
    top1_agreement: MinLimit | None = Field(
        default=MinLimit(min=0.94), description="share of tokens with the same likeliest next token"
    )
    non_finite: MaxLimit | None = Field(
        default=MaxLimit(max=0), description="predictions with a logit that is not finite"
    )
    early: TextGate = Field(default=TextGate(), description="of the beginnings of all windows")
    texts: dict[str, TextGate] = Field(
        default={}, description="of each text whose name fits the pattern; later ones win"
    )
    tasks: dict[str, TaskGate] = Field(
        default={}, description="of each task whose name fits the pattern; later ones win"
    )

    @model_serializer(mode="wrap")
    def _serialize_fields(self, write: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return write(self)  # with the defaults, which a report must tell


class ReportSettings(Settings):
    """How a verdict is told to other programs."""

    junit_inconclusive: Literal["failure", "error", "skipped"] = Field(
        default="failure", description="what INCONCLUSIVE becomes in junit.xml"
    )


class ScoringSettings(Settings):
    """Which predictions are compared, and how they are computed."""

    text: tuple[Path, ...] = Field(
        default=(), description="conversations (JSON, JSON lines) or plain texts, held out"
    )
    protocol: Literal["documents", "gptq", "llama.cpp", "lm-eval"] = Field(
        default="documents",
        description="how a text is cut and which tokens are scored: each document by itself, or "
        "as another tool does it",
    )
    sequence_length: int | None = Field(
        default=None,
        gt=1,
        description="tokens of a window; without it 2048, llama.cpp 512, lm-eval all positions of "
        "the model, which it never exceeds",
    )
    max_tokens: int | None = Field(
        default=None, gt=1, description="of each text; the first ones are taken"
    )
    assistant_only: bool = Field(
        default=False, description="of conversations, score only what the assistant says"
    )
    noise_floor: Literal["none", "batch", "bfloat16"] = Field(
        default="none",
        description="run the reference once more in other batches, or in bfloat16, and show how "
        "far it is from itself",
    )
    allow_quantized_reference: bool = Field(
        default=False,
        description="measure against a model that is itself quantized; every report and card says "
        "so",
    )
    device: str = Field(default="auto", description="auto, cpu or cuda:N")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="to compute in; auto is fp32 on a CPU and the reference's own elsewhere",
    )


class StoreSettings(ScoringSettings):
    """The predictions of a reference, computed once and kept."""

    top_k: int = Field(
        default=256,
        ge=0,
        description="likeliest tokens kept of each prediction, 5 at least; 0 keeps all",
    )
    samples: int = Field(
        default=64, gt=0, description="tokens drawn from all others, to measure their divergence"
    )
    vocabulary: int | None = Field(
        default=None,
        gt=5,
        description="ids that predictions are over; the candidate's where it has fewer",
    )

    @field_validator("top_k")
    @classmethod
    def _require_top_k(cls, value: int) -> int:
        if 0 < value < 5:
            raise ValueError("give 5 or more, or 0 for all")
        return value


class Validate(ScoringSettings, ReportSettings):
    """Reference against candidate, on the same tokens and the same tasks."""

    tasks: tuple[str, ...] = Field(
        default=(),
        description="benchmarks that both models answer: tulu, tulu-fixed, one of their columns, "
        "or a task of lm-evaluation-harness",
    )
    data_dir: Path | None = Field(
        default=None,
        description="folder of the benchmarks' data; without it, eval in the folder that "
        "CAMELPRESS_DATA names",
    )
    budget: str | None = Field(
        default=None,
        description="time for all tasks, such as 10m: each gets as many items as fit, always the "
        "first ones of one shuffle",
    )
    answers: Path | None = Field(
        default=None,
        description="folder in which answers to tasks are kept, so that no model answers twice",
    )
    completions: Literal["own", "vllm"] = Field(
        default="own",
        description="who completes prompts: camelpress itself, or vLLM with copies of the model",
    )
    vllm_gpus: int = Field(default=1, gt=0, description="GPUs of each copy of a model in vLLM")
    judge: JudgeSettings = Field(
        default=JudgeSettings(),
        description="who says which of two outputs is better, for AlpacaFarm",
    )
    allow_overlap: bool = Field(
        default=False, description="go on with a text that shares its words with the calibration"
    )
    gate: Gate = Field(default=Gate(), description="thresholds")
