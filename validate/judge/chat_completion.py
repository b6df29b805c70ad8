"""What a service says, read as far as it is understood; anything may come."""

from __future__ import annotations

import email.utils
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from camelpress.core.files.json_files import parse_json

MAX_TOKENS = 2**32  # tokens that one answer can plausibly have taken


@dataclass(frozen=True)
class JudgeReply:
    """What a judge said, and how many tokens that took, if it tells."""

    text: str
    tokens_in: int = 0
    tokens_out: int = 0


@dataclass(frozen=True)
class EndpointFault:
    """Why there was no reply, and how many seconds the service asked for."""

    reason: str
    retry_after: float | None = None


def parse_completion(body: bytes) -> JudgeReply | EndpointFault:
    """The text of a chat completion and what it took."""
    try:
        told = parse_json(body)
        text = told["choices"][0]["message"]["content"]
        took = told.get("usage") or {}
        counts = [took.get(name, 0) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return EndpointFault("an answer that is no chat completion")
    if text is None:  # a refusal, or all tokens went into thinking
        text = ""
    if not isinstance(text, str) or not all(map(_is_count, counts)):
        return EndpointFault("an answer that is no chat completion")
    return JudgeReply(text, *counts)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_TOKENS


def parse_error(body: bytes) -> Mapping[str, Any]:
    """What a service says of an error, if it does so in the usual form."""
    try:
        told = parse_json(body)
    except (ValueError, RecursionError):
        return {}
    error = told.get("error") if isinstance(told, dict) else None
    return error if isinstance(error, dict) else {"message": error or ""}


def parse_retry_after(said: str) -> float | None:
    """The seconds of a Retry-After header: it gives them, or the time when to come again.

    Source: RFC 9110, section 10.2.3.
    """
    try:
        wait = float(said)
    except ValueError:
        try:
            wait = email.utils.parsedate_to_datetime(said).timestamp() - time.time()
        except (ValueError, OverflowError, TypeError):  # a year or an offset beyond all calendars
            return None
    return wait if math.isfinite(wait) and wait > 0 else None
