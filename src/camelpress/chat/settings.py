"""Settings of text generation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from camelpress.core.settings import Settings


class Generate(Settings):
    """Settings of one reply: chat template, sampling, length and device."""

    system: str | None = Field(
        default=None, description="system message before all others; Tulu 1 was trained without one"
    )
    template: Literal["auto", "tulu", "plain"] = Field(
        default="auto",
        description="auto: the tokenizer's template; tulu: Tulu's format; plain: continue the text",
    )
    temperature: float = Field(
        default=0.0,
        ge=0,
        le=10,
        description="sampling temperature; 0 always takes the likeliest token",
    )
    top_p: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="probability mass of the likeliest tokens to sample from",
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="seed of the sampling")
    max_new_tokens: int = Field(default=512, gt=0, description="maximum tokens of a reply")
    device: str = Field(default="auto", description="auto, cpu or cuda:N")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="compute dtype; auto: the model's own on a GPU, fp32 on a CPU if it fits",
    )
