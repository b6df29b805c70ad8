"""What a recipe may say about publishing."""

from __future__ import annotations

from pydantic import Field

from camelpress.core.settings import Settings

REPOSITORY = r"^[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?$"


class Publish(Settings):
    """A validated 4-bit checkpoint to a release folder."""

    license: str = Field(
        default="unknown",
        description="licence profile of the model: tulu, llama, llama2, apache-2.0 or mit; "
        "has to be given",
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
    allow_failed_gate: str | None = Field(
        default=None,
        pattern=r"\S",
        description="reason to publish without a PASS; the card and the provenance show it",
    )
