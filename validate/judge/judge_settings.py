"""How a judge is asked. Its key is no setting: it stands in the environment and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from camelpress.core.settings import SettingsSection


class JudgeSettings(SettingsSection):
    """Which of two outputs is better, and who says so."""

    url: str | None = Field(
        default=None,
        description="of an OpenAI-compatible service that judges, such as https://host/v1; its "
        "key, where it wants one, in CAMELPRESS_JUDGE_KEY",
    )
    model: str | None = Field(default=None, description="that judges, by its name at the service")
    local: Path | None = Field(
        default=None, description="folder of a model with a chat template that judges here instead"
    )
    annotations: Path | None = Field(
        default=None,
        description="file of verdicts, which nobody is asked again; a judge's new ones are added "
        "to JSON lines; alone it must hold all; without it verdicts.jsonl beside the answers, or "
        "OUT.verdicts.jsonl",
    )
    parallel: int = Field(default=8, gt=0, description="questions under way at once")
    per_minute: float = Field(default=500.0, gt=0, description="questions begun in a minute")
    attempts: int = Field(
        default=6, gt=0, description="at one question, before the run stops; it can be resumed"
    )
    timeout: float = Field(default=120.0, gt=0, description="of one answer, s")
    longest_wait: float = Field(
        default=300.0, gt=0, description="that a service may ask for between two questions, s"
    )
    max_tokens: int = Field(default=32, gt=0, description="of an answer")
    extra: dict[str, Any] = Field(
        default={}, description="more fields of each request; null takes one away"
    )
    price_in: float | None = Field(default=None, ge=0, description="of a million tokens read, USD")
    price_out: float | None = Field(
        default=None, ge=0, description="of a million tokens written, USD"
    )
    budget: float | None = Field(
        default=None, gt=0, description="USD; nobody is asked if the estimate is above it"
    )
    unread: float = Field(
        default=0.05, ge=0, lt=1, description="share of answers without a verdict that is borne"
    )
