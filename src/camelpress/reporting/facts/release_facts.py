"""Typed facts of the reports about releases, and of a generated text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from camelpress.reporting.facts.validation_facts import ModelFacts
from camelpress.reporting.facts_model import FactsModel


class UploadFacts(FactsModel):
    """Facts of an upload."""

    to: str = Field(description="destination")
    commit: str | None = Field(description="commit, tag or digest of the release there")
    private: bool | None = None
    gated: bool | None = None


class PublishFacts(FactsModel):
    """Facts of a release: its provenance."""

    name: str
    shape: Mapping[str, Any] = {}
    variants: Sequence[str] = []
    gate: Mapping[str, Any] = Field(default={}, description="front matter of the access gate")
    cards: Mapping[str, str] = Field(default={}, description="sha256 of the source models' cards")
    licenses: Sequence[str] = []
    verdict: str | None
    caveats: list[str]
    restricted: bool = Field(description="true if the licence forbids public access")
    versions: dict[str, str]
    commit: str | None = Field(description="git commit of camelpress")
    recipe: dict[str, Any] | None = Field(description="recipe that builds the model again")
    model: dict[str, str] = Field(description="sha256 of each file of the model")
    left_out: list[str] = Field(default=[], description="files that are not published")
    delivered: UploadFacts | None = None


class ProblemFacts(FactsModel):
    """Facts of a check of a release: of its files, its card, or its rebuilt weights."""

    files: int | None = Field(default=None, description="compared files")
    signed: str | None = Field(default=None, description="result of the check of the signature")
    problems: list[str]


class ReleaseDiffFacts(FactsModel):
    """Differences of two releases by kind."""

    differences: dict[str, list[str]]


class GenerationFacts(FactsModel):
    """Facts of a generated text."""

    model: ModelFacts
    text: str
    ids: list[int]
    prompt_ids: list[int]
    template: str
    stopped: str
    device: str
    dtype: str
