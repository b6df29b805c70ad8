"""What a recipe may say about recovering weights from a diff."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from camelpress.core.settings import Settings

RuleOption = Annotated[
    str, StringConstraints(pattern=r"^((.+=)?(auto|mean|zero|prefix|absolute|drop))$")
]


class RecoverSettings(Settings):
    """base + diff = tuned."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="of the recovered weights; auto: for each tensor the type that the diff "
        "states or its own sums fit; any other: one type for all, which rounds what it cannot hold",
    )
    check: Literal["full", "sample", "off"] = Field(
        default="sample",
        description="whether to test that this is the base the diff was made from: on every "
        "value while adding, on a sample before anything is written, or not at all",
    )
    rule: tuple[RuleOption, ...] = Field(
        default=("auto",),
        description="how the base is extended where the diff is larger: auto|mean|zero|prefix|"
        "absolute|drop, or NAME=RULE for the tensors of that name (* matches); repeatable, the "
        "last that fits holds",
    )
    extra_rows: Literal["published", "zero", "mean", "drop"] = Field(
        default="published",
        description="what becomes of the rows of added tokens: as the rule says, zeros, the mean "
        "of the base's rows, or none",
    )
    chat_template: Literal["auto", "tulu", "none"] = Field(
        default="auto",
        description="auto: the diff's own, or Tulu's where the diff is of open-instruct",
    )
    verify: Path | None = Field(
        default=None,
        description="prompts with completions that the tuned model is known to have given; they "
        "are scored under the recovered one",
    )
    device: str = Field(default="auto", description="that scores them: auto, cpu or cuda:N")


class MakeDiffSettings(Settings):
    """tuned - base = diff."""

    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32",
        description="of the diff; float32 comes back bit for bit, 16 bits within a stated bound",
    )
    rule: Literal["mean", "zero"] = Field(
        default="mean",
        description="what stands in the base's place for the rows of added tokens",
    )


class ExportSettings(Settings):
    """The same model in another layout."""

    to: Literal["compressed-tensors", "gptq-v2", "gptq", "dense"] = Field(
        description="layout of the output; dense: plain weights",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32",
        description="of a dense output; float32 holds every product of a code and a 16-bit scale, "
        "16 bits round most of them, by as much as the report says",
    )
