"""What a recipe may say about recovering weights from a diff."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from camelpress.core.settings import Settings


class Recover(Settings):
    """base + diff = tuned."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="of the recovered weights; auto: the 16-bit type that the sums fit exactly, "
        "float32 if there is none",
    )
    check: Literal["sample", "off"] = Field(
        default="sample", description="whether to test that this is the base the diff was made from"
    )


class MakeDiff(Settings):
    """tuned - base = diff."""

    dtype: Literal["float32"] = Field(
        default="float32",
        description="of the diff; the difference of 16-bit weights loses nothing in float32",
    )
