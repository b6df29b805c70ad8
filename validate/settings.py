"""What a recipe may say about validating, and the gate."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

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


class Validate(Settings):
    """Reference against candidate, on the same tokens."""

    text: tuple[Path, ...] = Field(
        default=(), description="conversations (JSON, JSON lines) or plain texts, held out"
    )
    sequence_length: int = Field(
        default=2048,
        gt=1,
        description="tokens of a window; the model's positions where it has fewer",
    )
    max_tokens: int | None = Field(
        default=None, gt=1, description="of each text; the first ones are taken"
    )
    allow_overlap: bool = Field(
        default=False, description="go on with a text that shares its words with the calibration"
    )
    device: str = Field(default="auto", description="auto, cpu or cuda:N")
    gate: Gate = Field(default=Gate(), description="thresholds")
