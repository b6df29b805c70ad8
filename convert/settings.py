"""Settings of the commands recover, make-diff and export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from camelpress.core.settings import Settings

RuleOption = Annotated[
    str, StringConstraints(pattern=r"^((.+=)?(auto|mean|zero|prefix|absolute|drop))$")
]


class RecoverSettings(Settings):
    """Recovers the tuned model: base + diff = tuned."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="dtype of the recovered weights; auto: per tensor, as the diff states it or as "
        "the sums of the tensor show it; any other: one dtype for all tensors, with rounding",
    )
    check: Literal["full", "sample", "off"] = Field(
        default="sample",
        description="test of the base: on every value while adding (full), on a sample before "
        "the first write (sample), or none (off)",
    )
    rule: tuple[RuleOption, ...] = Field(
        default=("auto",),
        description="rule for tensors of the diff that are larger than the base's: auto|mean|zero|"
        "prefix|absolute|drop, or NAME=RULE for tensors of one name (* matches); repeatable, the "
        "last match wins",
    )
    extra_rows: Literal["published", "zero", "mean", "drop"] = Field(
        default="published",
        description="values of the rows of added tokens: as the rule computes them (published), "
        "zeros, the mean of the base's rows, or no such rows (drop)",
    )
    chat_template: Literal["auto", "tulu", "none"] = Field(
        default="auto",
        description="chat template of the output; auto: the diff's own, or Tulu's for a diff of "
        "open-instruct",
    )
    verify: Path | None = Field(
        default=None,
        description="file of prompts with known completions of the tuned model, to be scored "
        "under the recovered model",
    )
    device: str = Field(default="auto", description="device for verify: auto, cpu or cuda:N")


class MakeDiffSettings(Settings):
    """Makes a diff: tuned - base = diff."""

    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32",
        description="dtype of the diff; float32 restores the tuned weights bit for bit, 16 bits "
        "within a stated bound",
    )
    rule: Literal["mean", "zero"] = Field(
        default="mean",
        description="base values for rows of added tokens: the mean of the base's rows, or zero",
    )


class ExportSettings(Settings):
    """Exports a packed model to another layout."""

    to: Literal["compressed-tensors", "gptq-v2", "gptq", "dense"] = Field(
        description="layout of the output; dense: unpacked weights",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32",
        description="dtype of a dense output; float32 holds every product of a code and a 16-bit "
        "scale, 16 bits round most of them; the report states the largest error",
    )
