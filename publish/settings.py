"""Defines the settings of the publish stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints

from camelpress.core.settings import Settings

REPOSITORY = r"^[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?$"
BENCHMARK = r"^[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(:[\w.-]+)?$"


class PublishSettings(Settings):
    """Settings to turn a validated 4-bit checkpoint into a release."""

    to: str | None = Field(
        default=None,
        min_length=1,
        description="Destination of the release: a folder, s3://bucket/prefix, "
        "oci://registry/name[:tag] or hf:org/name[@branch]. Tag and branch default to the name of "
        "the quantization. A recipe always writes the folder `release` as well.",
    )
    public: bool = Field(
        default=False,
        description="Make the hub repository public instead of private. A model under a "
        "restricted licence is gated in both cases.",
    )
    i_have_the_right: bool = Field(
        default=False,
        description="Confirm that the licences of all inputs allow you to publish the model. "
        "--public requires this, and the provenance records it.",
    )
    license: str = Field(
        default="unknown",
        description="Licence profile of the model: tulu, impact-lr, llama, llama2, apache-2.0 "
        "or mit. Required.",
    )
    name: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="Title of the release; the name of its folder by default.",
    )
    base_model: str | None = Field(
        default=None,
        pattern=REPOSITORY,
        description="Hub name of the raw model, such as huggyllama/llama-65b.",
    )
    diff_model: str | None = Field(
        default=None,
        pattern=REPOSITORY,
        description="Hub name of the tuned model or its diff, such as allenai/tulu-65b.",
    )
    calibration_license: str | None = Field(
        default=None,
        pattern=r"\S",
        max_length=200,
        description="Licence of the calibration texts, for the card.",
    )
    benchmarks: dict[str, Annotated[str, StringConstraints(pattern=BENCHMARK)]] = Field(
        default={},
        description="Hub data sets of the benchmarks in the report, such as "
        "{gsm8k: openai/gsm8k:gsm8k}. The release ships their results as .eval_results.",
    )
    gated_like: tuple[str, ...] = Field(
        default=(),
        description="Models with cards that define the access gate and the licence: folders, "
        "card files, or hf:org/name; repeatable. By default the available cards of base and diff.",
    )
    recipe_only: bool = Field(
        default=False,
        description="Publish a recipe and hashes to rebuild the weights, without the weights.",
    )
    sign_with: Path | None = Field(
        default=None,
        description="Private key (PEM, elliptic curve) to sign the release. Needs the extra "
        "`sign`.",
    )
    allow_failed_gate: str | None = Field(
        default=None,
        pattern=r"\S",
        description="Reason to publish without a PASS, or with a PASS from benchmarks alone. The "
        "card and the provenance show it.",
    )
