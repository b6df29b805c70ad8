"""What a recipe may say about publishing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints

from camelpress.core.settings import Settings

REPOSITORY = r"^[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?$"
BENCHMARK = r"^[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(:[\w.-]+)?$"


class Publish(Settings):
    """A validated 4-bit checkpoint to a release."""

    to: str | None = Field(
        default=None,
        min_length=1,
        description="where the release goes: a folder, s3://bucket/prefix, "
        "oci://registry/name[:tag] or hf:org/name[@branch]; tag and branch are those of the "
        "variant where none is given; in a recipe, besides the folder `release`",
    )
    public: bool = Field(
        default=False,
        description="for everybody to see; otherwise private, and what a licence restricts is "
        "gated either way",
    )
    i_have_the_right: bool = Field(
        default=False,
        description="what --public asks you to say: the licences of all inputs let you publish "
        "this; the provenance shows it",
    )
    license: str = Field(
        default="unknown",
        description="licence profile of the model: tulu, impact-lr, llama, llama2, apache-2.0 "
        "or mit; has to be given",
    )
    name: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="title of the release; without one, the name of its folder",
    )
    base_model: str | None = Field(
        default=None,
        pattern=REPOSITORY,
        description="hub name of the raw model, such as huggyllama/llama-65b",
    )
    diff_model: str | None = Field(
        default=None,
        pattern=REPOSITORY,
        description="hub name of the tuned model or its diff, such as allenai/tulu-65b",
    )
    calibration_license: str | None = Field(
        default=None,
        pattern=r"\S",
        max_length=200,
        description="licence of the texts that the model was calibrated with, for the card",
    )
    benchmarks: dict[str, Annotated[str, StringConstraints(pattern=BENCHMARK)]] = Field(
        default={},
        description="data sets of the hub that tasks of the report stand for, such as "
        "{gsm8k: openai/gsm8k:gsm8k}; their results are shipped as .eval_results",
    )
    gated_like: tuple[str, ...] = Field(
        default=(),
        description="models whose cards say what is asked of readers, and under what licence: "
        "folders, cards, or hf:org/name; repeatable; without any, base and diff where their cards "
        "are at hand",
    )
    recipe_only: bool = Field(
        default=False,
        description="no weights: what is needed to rebuild them, and the hashes to check them by",
    )
    sign_with: Path | None = Field(
        default=None,
        description="private key (PEM, elliptic curve) that signs the release; needs the extra "
        "`sign`",
    )
    allow_failed_gate: str | None = Field(
        default=None,
        pattern=r"\S",
        description="reason to publish without a PASS, or with one by tasks alone; the card and "
        "the provenance show it",
    )
