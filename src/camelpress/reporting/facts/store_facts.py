"""Typed facts of the report of a store of predictions."""

from __future__ import annotations

from pydantic import Field

from camelpress.reporting.facts.validation_facts import ModelFacts, NoiseFloor
from camelpress.reporting.facts_model import FactsModel


class StoreTextFacts(FactsModel):
    """Facts of a text in a store."""

    name: str
    sha256: str
    windows: int = Field(gt=0)
    words: int = Field(ge=0)
    bytes: int = Field(ge=0)
    rows: int = Field(default=0, ge=0)
    omissions: dict[str, dict[str, int]] = {}


class StoreFacts(FactsModel):
    """Facts of a store."""

    protocol: str
    window: int = Field(gt=1, description="largest number of tokens per window")
    vocabulary: int = Field(gt=5, description="number of ids of the distributions")
    known: int = Field(gt=5, description="number of ids of the reference")
    predictions: int = Field(gt=0)
    sequences: int = Field(default=0, ge=0, description="independent pieces of text; 0 if unknown")
    repeats: int = Field(default=0, ge=0, description="pieces that repeat another")
    non_finite: int = Field(ge=0, description="predictions with a logit that is not finite")
    top_k: int = Field(gt=0, description="likeliest tokens stored per prediction")
    samples: int = Field(ge=0, description="tokens sampled from the others per prediction")
    remainder_mass: float = Field(description="mean probability mass outside the stored tokens")
    dtype: str
    reference: ModelFacts
    headers: str | None = Field(
        default=None,
        description="one hash over names, dtypes and shapes of the reference tensors; null in "
        "stores of earlier versions",
    )
    weights: str | None = Field(
        default=None, description="one hash over the bytes of the reference tensors"
    )
    texts: list[StoreTextFacts]
    noise_floor: NoiseFloor | None
