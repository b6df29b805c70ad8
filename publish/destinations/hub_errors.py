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
from camelpress.core.hub.hub_download import MISREAD, name_fault

FULL = (402, 403, 413, 507)  # with words about storage; the last two say so themselves
NETWORK = (ConnectionError, TimeoutError, socket.gaierror)  # OSErrors that are not of a disk
AGAIN = "run the same command again: it goes on with what is missing"


class Fault(NamedTuple):
    """A row: what fits it, what is told of the hub, what to do."""

    fits: Callable[[Exception], bool]
    said: str
    next_step: str


def _status(error: Exception) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _is(*statuses: int) -> Callable[[Exception], bool]:
    return lambda error: _status(error) in statuses


def _of(*kinds: type[Exception]) -> Callable[[Exception], bool]:
    return lambda error: isinstance(error, kinds)


def _full(error: Exception) -> bool:
    words = str(getattr(error, "server_message", None) or "").lower()
    return _status(error) in FULL[2:] or (_status(error) in FULL and "storage" in words)


def _of_metadata(error: Exception) -> bool:
    """The client has no kind for what the hub finds wrong in the YAML of a card."""
    return type(error) is ValueError and str(error).startswith("Invalid metadata")


# fmt: off
FAULTS = (  # the hub ...; the first that fits
    Fault(_of(LocalTokenNotFoundError), "asks who publishes to {repository}",
          "log in with `hf auth login`, or set HF_TOKEN to a token that may write"),
    Fault(_of(OIDCError), "gives this job no token for {repository}",
          "name this job among the trusted publishers of the repository, or set HF_TOKEN"),
    Fault(_of(OfflineModeIsEnabled), "is not asked, since HF_HUB_OFFLINE is set",
          "unset HF_HUB_OFFLINE"),
    Fault(_of(GatedRepoError), "does not let this login into {repository}, which is gated",
          "ask its owner for access, or name a repository of your own"),
    Fault(_full, "has no room left for {repository}",
          "free some storage of that account, or extend it; then run the same command again"),
    Fault(_is(401), "refuses this login",
          "log in again with `hf auth login`, or correct HF_TOKEN"),
    Fault(_is(403), "does not let this login write to {repository}",
          "take a token with the right to write there, or name another repository"),
    Fault(_of_metadata, "does not take what the card of {repository} says of it in its first lines",
          "publish to a folder, and look at them with `camelpress card`; the gate is that of the "
          "cards that --gated-like names"),
    Fault(_is(404), "does not show {repository}, or a part of it that was there a moment ago",
          "see whether somebody removed it, then run the same command again"),
    Fault(_is(409, 412), "says that {repository} was changed meanwhile",
          "see who else publishes there, then run the same command again"),
    Fault(_is(429), "asks for a pause: too many requests",
          "wait for some minutes, then " + AGAIN),
    Fault(_of(HfHubHTTPError), "failed in the middle of {repository} ({reason})", AGAIN),
    Fault(_of(httpx2.HTTPError, *NETWORK), "cannot be reached, or broke off ({reason})", AGAIN),
    Fault(_of(*MISREAD), "answers otherwise than a hub does ({reason})",
          "see whether HF_ENDPOINT names a hub and no proxy asks for a login, then " + AGAIN),
    Fault(_of(Exception), "does not take {repository} ({reason})", AGAIN),
)
# fmt: on


@contextmanager
def explained(repository: str) -> Iterator[None]:
    """Turn every error of the client into one line.

    Raises:
        OutputProblem: in place of what the client raises.
    """
    try:
        yield
    except (OSError, httpx2.HTTPError, OIDCError, RuntimeError, *MISREAD) as error:
        cause = _cause(error)
        if isinstance(cause, OSError) and cause.errno and not isinstance(cause, NETWORK):
            raise OutputProblem(
                f"{cause.filename or 'a file of the release'} cannot be read: "
                f"{os.strerror(cause.errno)}",
                next_step="see what became of it, then run the same command again",
            ) from error
        fault = next(row for row in FAULTS if row.fits(cause))
        status = _status(cause)
        reason = f"HTTP {status}" if status else name_fault(cause)
        raise OutputProblem(
            f"the hub {fault.said.format(repository=repository, reason=reason)}",
            next_step=fault.next_step,
        ) from error


def _cause(error: Exception) -> Exception:
    """What is behind the client's \"Error while uploading\"."""
    inner = error.__cause__
    return inner if isinstance(error, RuntimeError) and isinstance(inner, Exception) else error
