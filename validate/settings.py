"""What a recipe may say about validating, and the gate."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from camelpress.core.settings import Settings


class Bound(Settings):
    """What a figure must not exceed, or not fall below: exactly one of the two."""

    max: float | None = Field(default=None, allow_inf_nan=False)
    min: float | None = Field(default=None, allow_inf_nan=False)

    @model_validator(mode="after")
    def _one(self) -> Bound:
        if (self.max is None) == (self.min is None):
            raise ValueError("give either max or min")
        return self


class Gate(Settings):
    """Thresholds that decide whether a candidate passes; `null` leaves a check out.

    The defaults are starting points for large models. The best published 4-bit LLaMA-65B has a
    perplexity ratio of 1.034; mean divergences of good 4- to 5-bit models of 8 billion parameters
    lie between 0.005 and 0.05 nats, their top-1 agreement between 90 and 97 %.
    """

    perplexity_ratio: Bound | None = Field(
        default=Bound(max=1.035), description="candidate over reference"
    )
    kl_mean: Bound | None = Field(
        default=Bound(max=0.03), description="mean divergence per token, nats"
    )
    top1_agreement: Bound | None = Field(
        default=Bound(min=0.94), description="share of tokens with the same likeliest next token"
    )


class Scoring(Settings):
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
    device: str = Field(default="auto", description="auto, cpu or cuda:N")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="to compute in; auto is fp32 on a CPU and the reference's own elsewhere",
    )


class Keep(Scoring):
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
    def _five(cls, value: int) -> int:
        if 0 < value < 5:
            raise ValueError("give 5 or more, or 0 for all")
        return value


class Validate(Scoring):
    """Reference against candidate, on the same tokens."""

    allow_overlap: bool = Field(
        default=False, description="go on with a text that shares its words with the calibration"
    )
    gate: Gate = Field(default=Gate(), description="thresholds")
