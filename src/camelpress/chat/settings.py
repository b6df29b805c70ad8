"""What can be said about letting a model speak."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from camelpress.core.settings import Settings


class Generate(Settings):
    """How a reply is made."""

    system: str | None = Field(
        default=None, description="a system message before all others; Tulu 1 never saw one"
    )
    template: Literal["auto", "tulu", "plain"] = Field(
        default="auto",
        description="auto: the tokenizer's; tulu: Tulu's format; plain: the text goes on as it is",
    )
    temperature: float = Field(
        default=0.0, ge=0, le=10, description="of the draw; 0 takes the likeliest token, always"
    )
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="share of the likeliest tokens that is drawn from"
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="of the draw")
    max_new_tokens: int = Field(default=512, gt=0, description="of a reply, at most")
    device: str = Field(default="auto", description="auto, cpu or cuda:N")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="to compute in; auto: the model's own on a GPU, on a CPU fp32 where that fits",
    )
