"""Translates errors of the hub and the network during an upload into one-line problems.

The messages of the hub are not repeated, since they can contain signed URLs.
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

STORAGE_STATUSES = (402, 403, 413, 507)  # HTTP codes of full storage; 402, 403 need the word
NETWORK_ERRORS = (ConnectionError, TimeoutError, socket.gaierror)  # OSErrors of a network
RETRY_STEP = "run the same command again: it continues with the missing files"


class HubErrorRule(NamedTuple):
    """Rule that maps an exception to an error message and a next step."""

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
    message = str(getattr(error, "server_message", None) or "").lower()
    return _status(error) in STORAGE_STATUSES[2:] or (
        _status(error) in STORAGE_STATUSES and "storage" in message
    )


def _is_invalid_metadata(error: Exception) -> bool:
    """Returns True for invalid card metadata; the client raises a plain ValueError for it."""
    return type(error) is ValueError and str(error).startswith("Invalid metadata")


# fmt: off
HUB_ERROR_RULES = (  # messages continue "the hub ..."; the first matching rule applies
    HubErrorRule(
        _is_instance(LocalTokenNotFoundError), "needs a login to publish to {repository}",
        "log in with `hf auth login`, or set HF_TOKEN to a token with write access"),
    HubErrorRule(
        _is_instance(OIDCError), "gives this job no token for {repository}",
        "add this job to the trusted publishers of the repository, or set HF_TOKEN"),
    HubErrorRule(
        _is_instance(OfflineModeIsEnabled), "is not used, since HF_HUB_OFFLINE is set",
        "unset HF_HUB_OFFLINE"),
    HubErrorRule(
        _is_instance(GatedRepoError), "denies this login access to {repository}, which is gated",
        "ask its owner for access, or name a repository of your own"),
    HubErrorRule(
        _is_storage_full, "has no storage left for {repository}",
        "free some storage of that account, or extend it; then run the same command again"),
    HubErrorRule(
        _has_status(401), "refuses this login",
        "log in again with `hf auth login`, or correct HF_TOKEN"),
    HubErrorRule(
        _has_status(403), "does not let this login write to {repository}",
        "use a token with write access there, or name another repository"),
    HubErrorRule(
        _is_invalid_metadata, "rejects the metadata at the top of the card of {repository}",
        "publish to a folder, and check its metadata with `camelpress card`; the gate comes from "
        "the cards of --gated-like"),
    HubErrorRule(
        _has_status(404), "no longer shows {repository}, or a part of it",
        "check whether somebody removed it, then run the same command again"),
    HubErrorRule(
        _has_status(409, 412), "says that {repository} changed during the upload",
        "check for other uploads to it, then run the same command again"),
    HubErrorRule(
        _has_status(429), "asks for a pause: too many requests",
        "wait for some minutes, then " + RETRY_STEP),
    HubErrorRule(
        _is_instance(HfHubHTTPError), "failed in the middle of {repository} ({reason})",
        RETRY_STEP),
    HubErrorRule(
        _is_instance(httpx2.HTTPError, *NETWORK_ERRORS),
        "cannot be reached, or lost the connection ({reason})", RETRY_STEP),
    HubErrorRule(
        _is_instance(*RESPONSE_ERRORS), "gives answers unlike a hub ({reason})",
        "check that HF_ENDPOINT names a hub and no proxy asks for a login, then " + RETRY_STEP),
    HubErrorRule(_is_instance(Exception), "rejects {repository} ({reason})", RETRY_STEP),
)
# fmt: on


@contextmanager
def hub_errors(repository: str) -> Iterator[None]:
    """Turns every error of the hub client into a one-line problem.

    Raises:
        OutputProblem: the client raised an error.
    """
    try:
        yield
    except (OSError, httpx2.HTTPError, OIDCError, RuntimeError, *RESPONSE_ERRORS) as error:
        cause = _cause(error)
        if isinstance(cause, OSError) and cause.errno and not isinstance(cause, NETWORK_ERRORS):
            raise OutputProblem(
                f"{cause.filename or 'a file of the release'} cannot be read: "
                f"{os.strerror(cause.errno)}",
                next_step="check that file, then run the same command again",
            ) from error
        rule = next(row for row in HUB_ERROR_RULES if row.matches(cause))
        status = _status(cause)
        reason = f"HTTP {status}" if status else name_fault(cause)
        raise OutputProblem(
            f"the hub {rule.message.format(repository=repository, reason=reason)}",
            next_step=rule.next_step,
        ) from error


def _cause(error: Exception) -> Exception:
    """Returns the cause behind the generic RuntimeError of an upload."""
    inner = error.__cause__
    return inner if isinstance(error, RuntimeError) and isinstance(inner, Exception) else error
