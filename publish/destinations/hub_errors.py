"""What a hub, or the way to it, can answer to an upload, each in one line.

The hub's own words are not passed on; they can hold signed addresses.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import httpx2
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    OIDCError,
)

from camelpress.core.errors import OutputProblem
from camelpress.core.hub.hub_download import RESPONSE_ERRORS, name_fault

STORAGE_STATUSES = (402, 403, 413, 507)  # with words about storage; the last two say so themselves
NETWORK_ERRORS = (ConnectionError, TimeoutError, socket.gaierror)  # OSErrors that are not of a disk
RETRY_STEP = "run the same command again: it goes on with what is missing"


class HubErrorRule(NamedTuple):
    """A row: what fits it, what is told of the hub, what to do."""

    matches: Callable[[Exception], bool]
    message: str
    next_step: str


def _status(error: Exception) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _has_status(*statuses: int) -> Callable[[Exception], bool]:
    return lambda error: _status(error) in statuses


def _is_instance(*kinds: type[Exception]) -> Callable[[Exception], bool]:
    return lambda error: isinstance(error, kinds)


def _is_storage_full(error: Exception) -> bool:
    words = str(getattr(error, "server_message", None) or "").lower()
    return _status(error) in STORAGE_STATUSES[2:] or (
        _status(error) in STORAGE_STATUSES and "storage" in words
    )


def _is_invalid_metadata(error: Exception) -> bool:
    """The client has no kind for what the hub finds wrong in the YAML of a card."""
    return type(error) is ValueError and str(error).startswith("Invalid metadata")


# fmt: off
HUB_ERROR_RULES = (  # the hub ...; the first that fits
    HubErrorRule(_is_instance(LocalTokenNotFoundError), "asks who publishes to {repository}",
          "log in with `hf auth login`, or set HF_TOKEN to a token that may write"),
    HubErrorRule(_is_instance(OIDCError), "gives this job no token for {repository}",
          "name this job among the trusted publishers of the repository, or set HF_TOKEN"),
    HubErrorRule(_is_instance(OfflineModeIsEnabled), "is not asked, since HF_HUB_OFFLINE is set",
          "unset HF_HUB_OFFLINE"),
    HubErrorRule(_is_instance(GatedRepoError), "does not let this login into {repository}, which is gated",
          "ask its owner for access, or name a repository of your own"),
    HubErrorRule(_is_storage_full, "has no room left for {repository}",
          "free some storage of that account, or extend it; then run the same command again"),
    HubErrorRule(_has_status(401), "refuses this login",
          "log in again with `hf auth login`, or correct HF_TOKEN"),
    HubErrorRule(_has_status(403), "does not let this login write to {repository}",
          "take a token with the right to write there, or name another repository"),
    HubErrorRule(_is_invalid_metadata, "does not take what the card of {repository} says of it in its first lines",
          "publish to a folder, and look at them with `camelpress card`; the gate is that of the "
          "cards that --gated-like names"),
    HubErrorRule(_has_status(404), "does not show {repository}, or a part of it that was there a moment ago",
          "see whether somebody removed it, then run the same command again"),
    HubErrorRule(_has_status(409, 412), "says that {repository} was changed meanwhile",
          "see who else publishes there, then run the same command again"),
    HubErrorRule(_has_status(429), "asks for a pause: too many requests",
          "wait for some minutes, then " + RETRY_STEP),
    HubErrorRule(_is_instance(HfHubHTTPError), "failed in the middle of {repository} ({reason})", RETRY_STEP),
    HubErrorRule(_is_instance(httpx2.HTTPError, *NETWORK_ERRORS), "cannot be reached, or broke off ({reason})", RETRY_STEP),
    HubErrorRule(_is_instance(*RESPONSE_ERRORS), "answers otherwise than a hub does ({reason})",
          "see whether HF_ENDPOINT names a hub and no proxy asks for a login, then " + RETRY_STEP),
    HubErrorRule(_is_instance(Exception), "does not take {repository} ({reason})", RETRY_STEP),
)
# fmt: on


@contextmanager
def hub_errors(repository: str) -> Iterator[None]:
    """Turn every error of the client into one line.

    Raises:
        OutputProblem: in place of what the client raises.
    """
    try:
        yield
    except (OSError, httpx2.HTTPError, OIDCError, RuntimeError, *RESPONSE_ERRORS) as error:
        cause = _cause(error)
        if isinstance(cause, OSError) and cause.errno and not isinstance(cause, NETWORK_ERRORS):
            raise OutputProblem(
                f"{cause.filename or 'a file of the release'} cannot be read: "
                f"{os.strerror(cause.errno)}",
                next_step="see what became of it, then run the same command again",
            ) from error
        fault = next(row for row in HUB_ERROR_RULES if row.matches(cause))
        status = _status(cause)
        reason = f"HTTP {status}" if status else name_fault(cause)
        raise OutputProblem(
            f"the hub {fault.message.format(repository=repository, reason=reason)}",
            next_step=fault.next_step,
        ) from error


def _cause(error: Exception) -> Exception:
    """What is behind the client's \"Error while uploading\"."""
    inner = error.__cause__
    return inner if isinstance(error, RuntimeError) and isinstance(inner, Exception) else error
