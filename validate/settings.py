"""Settings of the validation stage and its gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import (
    ConfigDict,
    Field,
    create_model,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from camelpress.core.settings import Settings
from camelpress.reporting.limit_range import ITEM_SHARE, PROBABILITY, LimitRange
from camelpress.reporting.metrics import METRICS
from camelpress.validate.judge.judge_settings import JudgeSettings

LIMIT_RANGES = {name: metric.limits for name, metric in METRICS.items() if metric.limits}
DEFAULT_LIMITS = {
    name: metric.default_limit
    for name, metric in METRICS.items()
    if metric.default_limit is not None
}


class MaxLimit(Settings):
    """Upper limit of a metric; smaller is better."""

    max: float = Field(allow_inf_nan=False)


class MinLimit(Settings):
    """Lower limit of a metric; larger is better."""

    min: float = Field(allow_inf_nan=False)


class ExplicitSettings(Settings):
    """Serializes only fields that were set.

    So merging patterns never overwrites a value with null.
    """

    @model_serializer(mode="wrap")
    def _serialize_fields(self, write: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        names = self.model_fields_set
        return {key: value for key, value in write(self).items() if key in names}


def _require_possible(limits: LimitRange, limit: float) -> None:
    if not limits.contains(limit):
        raise PydanticCustomError("limit", "{demand}", {"demand": limits.message(limit)})


def _add_limit_ranges(schema: dict[str, Any]) -> None:
    """Adds the possible limits of each metric to the JSON Schema of `TextGate`."""
    for name, limits in LIMIT_RANGES.items():
        schema["properties"][name]["properties"] = dict.fromkeys(("max", "min"), limits.schema)


def _limit_fields(defaults: Mapping[str, float | None]) -> dict[str, Any]:
    """Returns a field per metric: its default limit, upper or lower, or null."""
    fields = {}
    for name, limit in defaults.items():
        metric = METRICS[name]
        kind: type[MaxLimit | MinLimit] = MaxLimit if metric.direction == "max" else MinLimit
        default = None if limit is None else kind.model_validate({metric.direction: limit})
        field = Field(default=default, description=metric.text("gate_note"))
        fields[name] = (kind | None, field)
    return fields


if TYPE_CHECKING:

    class MetricLimits(ExplicitSettings):
        """Limits by the key of their metric."""

        model_config = ConfigDict(extra="allow")

        def __getattr__(self, name: str) -> MaxLimit | MinLimit | None: ...

else:
    MetricLimits = create_model(
        "MetricLimits", __base__=ExplicitSettings, **_limit_fields(dict.fromkeys(LIMIT_RANGES))
    )


class TextGate(MetricLimits):
    """Limits for the metrics of a report; `null` disables a check.

    A check is an ERROR if the report lacks its metric. `reporting.metrics.METRICS` lists the place
    of each metric in a report and the limits that it can meet and miss.
    """

    model_config = ConfigDict(json_schema_extra=_add_limit_ranges)

    @field_validator(*LIMIT_RANGES)
    @classmethod
    def _require_possible_limit(
        cls, value: MaxLimit | MinLimit | None, info: Any
    ) -> MaxLimit | MinLimit | None:
        match value:
            case MaxLimit(max=limit) | MinLimit(min=limit):
                _require_possible(LIMIT_RANGES[info.field_name], limit)
        return value


class TaskGate(ExplicitSettings):
    """Limits for a task: a tolerated loss of accuracy, a significance level, or both.

    A small task cannot show that a loss is small; `significance` still finds large losses there.
    """

    margin: float | None = Field(
        default=None,
        json_schema_extra={**ITEM_SHARE.schema},
        description="tolerated loss of accuracy, as a share of all items",
    )
    significance: float | None = Field(
        default=None,
        json_schema_extra={**PROBABILITY.schema},
        description="p-value of a significant loss, adjusted over all tasks with this limit",
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


if TYPE_CHECKING:
    DefaultLimits = TextGate
else:
    DefaultLimits = create_model(
        "DefaultLimits", __base__=TextGate, **_limit_fields(DEFAULT_LIMITS)
    )


class Gate(DefaultLimits):
    """Limits of all checks of a candidate; `null` disables a check.

    The defaults are starting points for large models. The best published 4-bit LLaMA-65B has a
    perplexity ratio of 1.034. Good 4- to 5-bit models of 8 billion parameters have a mean
    divergence between 0.005 and 0.05 nats and a top-1 agreement between 90 and 97 %.
    """

    early: TextGate = Field(
        default=TextGate(), description="limits for the first 128 tokens of every window"
    )
    texts: dict[str, TextGate] = Field(
        default={}, description="pattern of text names to limits; later patterns win"
    )
    tasks: dict[str, TaskGate] = Field(
        default={}, description="pattern of task names to limits; later patterns win"
    )

    @model_serializer(mode="wrap")
    def _serialize_fields(self, write: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return write(self)  # a report shows the defaults, too


class ReportSettings(Settings):
    """Settings of the report files for other programs."""

    junit_inconclusive: Literal["failure", "error", "skipped"] = Field(
        default="failure", description="junit.xml element for an INCONCLUSIVE check"
    )


class ScoringSettings(Settings):
    """Settings for the scored texts and the computation of predictions."""

    text: tuple[Path, ...] = Field(
        default=(), description="held-out conversations (JSON, JSON lines) or plain texts"
    )
    protocol: Literal["documents", "gptq", "llama.cpp", "lm-eval"] = Field(
        default="documents",
        description="rules for windows and scored tokens: each document by itself, or the rules of "
        "another tool",
    )
    sequence_length: int | None = Field(
        default=None,
        gt=1,
        description="tokens per window, at most the positions of the model; default 2048, for "
        "llama.cpp 512, for lm-eval all positions",
    )
    max_tokens: int | None = Field(
        default=None, gt=1, description="tokens taken from the beginning of each text"
    )
    assistant_only: bool = Field(
        default=False, description="score only the assistant's turns of conversations"
    )
    noise_floor: Literal["none", "batch", "bfloat16"] = Field(
        default="none",
        description="run the reference again in different batches, or in bfloat16, and show its "
        "divergence from itself",
    )
    allow_quantized_reference: bool = Field(
        default=False,
        description="accept a quantized model as the reference; every report and card says so",
    )
    device: str = Field(default="auto", description="auto, cpu or cuda:N")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="compute dtype; auto is fp32 on a CPU and the reference's dtype on a GPU",
    )


class StoreSettings(ScoringSettings):
    """Settings for a store of reference predictions."""

    top_k: int = Field(
        default=256,
        ge=0,
        description="likeliest tokens stored per prediction, at least 5; 0 stores all",
    )
    samples: int = Field(
        default=64, gt=0, description="tokens drawn from the remainder, to estimate its divergence"
    )
    vocabulary: int | None = Field(
        default=None,
        gt=5,
        description="ids that predictions cover; give the candidate's if it has fewer",
    )

    @field_validator("top_k")
    @classmethod
    def _require_top_k(cls, value: int) -> int:
        if 0 < value < 5:
            raise ValueError("give 5 or more, or 0 for all")
        return value


class ValidateSettings(ScoringSettings, ReportSettings):
    """Settings for a comparison of a candidate with its reference on the same tokens and tasks."""

    tasks: tuple[str, ...] = Field(
        default=(),
        description="benchmarks for both models: tulu, tulu-fixed, one of their columns, or a task "
        "of lm-evaluation-harness",
    )
    data_dir: Path | None = Field(
        default=None,
        description="folder of the benchmark data; default: eval in the folder that "
        "CAMELPRESS_DATA names",
    )
    budget: str | None = Field(
        default=None,
        description="time limit for all tasks, such as 10m; each task answers the first items of "
        "one fixed shuffle, as many as fit",
    )
    answers: Path | None = Field(
        default=None,
        description="cache folder for answers to tasks, so that no model answers twice",
    )
    completions: Literal["own", "vllm"] = Field(
        default="own",
        description="generator of completions: camelpress itself, or vLLM with copies of the model",
    )
    vllm_gpus: int = Field(default=1, gt=0, description="GPUs of each copy of a model in vLLM")
    judge: JudgeSettings = Field(
        default=JudgeSettings(),
        description="judge of output pairs, for AlpacaFarm",
    )
    allow_overlap: bool = Field(
        default=False, description="accept a text that overlaps the calibration"
    )
    gate: Gate = Field(default=Gate(), description="limits of the checks")
