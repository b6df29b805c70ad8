"""Parses replies of a chat completion service, defensively."""

from __future__ import annotations

import email.utils
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from camelpress.core.files.json_files import parse_json

MAX_TOKENS = 2**32  # plausible upper bound of the tokens of one answer


@dataclass(frozen=True)
class JudgeReply:
    """The text of a judge's reply with token counts, 0 if not reported."""

    text: str
    tokens_in: int = 0
    tokens_out: int = 0


@dataclass(frozen=True)
class EndpointFault:
    """The reason for a missing reply; `retry_after` is the requested wait, s."""

    reason: str
    retry_after: float | None = None


def parse_completion(body: bytes) -> JudgeReply | EndpointFault:
    """Parses a chat completion into its text and token counts."""
    try:
        document = parse_json(body)
        text = document["choices"][0]["message"]["content"]
        usage = document.get("usage") or {}
        counts = [usage.get(name, 0) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return EndpointFault("an answer in no chat completion format")
    if text is None:  # a refusal, or reasoning used all tokens
        text = ""
    if not isinstance(text, str) or not all(map(_is_count, counts)):
        return EndpointFault("an answer in no chat completion format")
    return JudgeReply(text, *counts)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_TOKENS


def parse_error(body: bytes) -> Mapping[str, Any]:
    """Parses the `error` object of a response body; empty for another form."""
    try:
        document = parse_json(body)
    except (ValueError, RecursionError):
        return {}
    error = document.get("error") if isinstance(document, dict) else None
    return error if isinstance(error, dict) else {"message": error or ""}


def parse_retry_after(header: str) -> float | None:
    """Parses a Retry-After header, given in seconds or as a date, into a positive wait, s.

    Source: RFC 9110, section 10.2.3.
    """
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, OverflowError, TypeError):  # a year or an offset out of range
            return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None
