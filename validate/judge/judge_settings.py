"""Defines the settings of a judge; its API key comes from the environment only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from camelpress.core.settings import SettingsSection


class JudgeSettings(SettingsSection):
    """The judge of pairwise comparisons and its limits."""

    url: str | None = Field(
        default=None,
        description="URL of an OpenAI-compatible service for judging, such as https://host/v1; "
        "its API key, if required, in CAMELPRESS_JUDGE_KEY",
    )
    model: str | None = Field(default=None, description="name of the judge model at the service")
    local: Path | None = Field(
        default=None, description="folder of a local judge model with a chat template"
    )
    annotations: Path | None = Field(
        default=None,
        description="file of stored verdicts; new verdicts are appended to JSON lines; without a "
        "judge it must hold all verdicts; default: verdicts.jsonl beside the answers, or "
        "OUT.verdicts.jsonl",
    )
    parallel: int = Field(default=8, gt=0, description="number of parallel requests")
    per_minute: float = Field(
        default=500.0, gt=0, description="maximum number of requests per minute"
    )
    attempts: int = Field(
        default=6, gt=0, description="attempts per question before the run stops; it can be resumed"
    )
    timeout: float = Field(default=120.0, gt=0, description="time limit of one answer, s")
    longest_wait: float = Field(
        default=300.0, gt=0, description="longest accepted wait demanded by the service, s"
    )
    max_tokens: int = Field(default=32, gt=0, description="maximum tokens of an answer")
    extra: dict[str, Any] = Field(
        default={}, description="additional fields of each request; null removes a field"
    )
    price_in: float | None = Field(
        default=None, ge=0, description="price of a million input tokens, USD"
    )
    price_out: float | None = Field(
        default=None, ge=0, description="price of a million output tokens, USD"
    )
    budget: float | None = Field(
        default=None, gt=0, description="maximum estimated cost, USD; above it no request is made"
    )
    unread: float = Field(
        default=0.05, ge=0, lt=1, description="tolerated share of answers without a verdict"
    )
