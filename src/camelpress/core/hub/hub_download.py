"""A checkpoint, or a file of a data set, from a repository on the Hugging Face hub.

huggingface_hub fetches into its own cache and heeds its own settings: HF_TOKEN, HF_ENDPOINT,
HF_HOME, HF_HUB_OFFLINE. Its words are not passed on; they can hold signed addresses.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import httpx2
from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import logging
from huggingface_hub.utils.tqdm import disable_progress_bars

from camelpress.core.errors import CheckpointProblem, DataProblem, Problem
from camelpress.core.hub.bounded_answers import OversizedAnswer, bound_answers
from camelpress.core.hub.model_location import (
    CARD_FILE,
    CHAT_TEMPLATES_FOLDER,
    HUB_PREFIX,
    REPO_ID_PATTERN,
    SIDECAR_PATTERNS,
)

SAFETENSORS, PICKLES = "model*.safetensors*", "pytorch_model*.bin*"  # weights and their index

DENIED_STATUS = (401, 403)
RESPONSE_ERRORS = (  # what the client raises at an answer of another shape
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
)
DOWNLOAD_ERRORS = (
    OSError,
    httpx2.HTTPError,
    RuntimeError,
    *RESPONSE_ERRORS,
)  # hf_xet raises RuntimeError alone

# fmt: off
ERROR_MESSAGES: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str, str], ...] = (
    # kinds of errors; the hub ...; the next step: the first row that fits
    (RevisionNotFoundError,   "has no revision {revision} of {repository}",
     "name a branch, a tag or a commit of that {kind}"),
    (GatedRepoError,          "does not give {repository} to everyone",
     "accept the licence on its page and log in with `hf auth login`, or set HF_TOKEN"),
    (RepositoryNotFoundError, "has no {kind} {repository}, or does not show it",
     "correct the name; for a private {kind}, log in with `hf auth login` or set HF_TOKEN"),
    (RemoteEntryNotFoundError, "has no file {file} in {repository}",
     "correct its name; it is listed on the page of that {kind}"),
    (PermissionError,         "refuses this login ({reason})",
     "log in again with `hf auth login`, or correct HF_TOKEN"),
    (LocalEntryNotFoundError, "is out of reach ({reason}) and {repository} is not all in its cache",
     "run the same command once with a connection and without HF_HUB_OFFLINE"),
    (RESPONSE_ERRORS,                 "answers otherwise than a hub does ({reason})",
     "see whether HF_ENDPOINT names a hub and no proxy asks for a login"),
    (Exception,               "broke off in the middle of {repository} ({reason})",
     "run the same command again: it resumes with the files that are not complete"),
)
# fmt: on


def download_model(named: re.Match[str], place: Path) -> Path:
    """The snapshot of a model repository in the cache; its folder has the name of the commit.

    Args:
        named: what `origin.HUB_ID` found.
        place: as it was given.
    Raises:
        CheckpointProblem: as `origin.locate`.
    """
    try:
        return _download_snapshot(named["repository"], named["revision"])
    except DOWNLOAD_ERRORS as error:
        told = {"kind": "model", **named.groupdict()}
        here = "" if named["prefix"] else f"{place} is not a folder here, and "
        raise _download_problem(CheckpointProblem, here, place, told, error) from error


def download_dataset_file(named: re.Match[str], file: str, place: Path) -> Path:
    """One file of a data set in the cache, below a folder that has the name of the commit.

    Args:
        named: what `origin.HUB_ID` found.
        file: its name in the repository.
        place: as it was given.
    Raises:
        DataProblem: as `origin.locate_file`.
    """
    prepare_client()
    try:
        found = hf_hub_download(
            named["repository"], file, repo_type="dataset", revision=named["revision"]
        )
    except DOWNLOAD_ERRORS as error:
        told = {"kind": "data set", "file": file, **named.groupdict()}
        raise _download_problem(DataProblem, "", place, told, error) from error
    return Path(found)


def download_card(named: re.Match[str], place: Path) -> Path:
    """The card of a model repository in the cache, in a folder that has the name of the commit.

    Args:
        named: what `origin.HUB_ID` found.
        place: as it was given.
    Raises:
        CheckpointProblem: as `origin.locate_card`.
    """
    prepare_client()
    try:
        return Path(hf_hub_download(named["repository"], CARD_FILE, revision=named["revision"]))
    except DOWNLOAD_ERRORS as error:
        told = {"kind": "model", "file": CARD_FILE, **named.groupdict()}
        raise _download_problem(CheckpointProblem, "", place, told, error) from error


def download_release(place: Path) -> tuple[Path, Path]:
    """All files of a model repository, in a folder of the cache, and the cache.

    Args:
        place: hf:org/name[@revision].
    Raises:
        CheckpointProblem: as `origin.locate`.
    """
    prepare_client()
    named = REPO_ID_PATTERN.fullmatch(str(place))
    if named is None:
        raise CheckpointProblem(
            f"{place} names no repository", next_step=f"write it as {HUB_PREFIX}org/name[@revision]"
        )
    try:
        found = snapshot_download(named["repository"], revision=named["revision"])
    except DOWNLOAD_ERRORS as error:
        told = {"kind": "model", **named.groupdict()}
        raise _download_problem(CheckpointProblem, "", place, told, error) from error
    return Path(found), Path(constants.HF_HUB_CACHE)


def _download_snapshot(repository: str, revision: str | None) -> Path:
    prepare_client()
    fetch = partial(
        snapshot_download, repository, ignore_patterns=exclude_other_folders(CHAT_TEMPLATES_FOLDER)
    )
    wanted = ["config.json", SAFETENSORS, CARD_FILE, *SIDECAR_PATTERNS]
    folder = Path(fetch(revision=revision, allow_patterns=wanted))
    if not any(folder.glob(SAFETENSORS)):
        fetch(revision=folder.name, allow_patterns=PICKLES)
    return folder


def exclude_other_folders(name: str) -> list[str]:
    """Returns the patterns that match what lies in any folder but the one of this name."""
    begins = [name[:length] for length in range(len(name))]
    differing = [f"{begin}[!{letter}/]*/*" for begin, letter in zip(begins, name, strict=True)]
    shorter = [f"{begin}/*" for begin in begins if begin]
    return [*differing, *shorter, f"{name}[!/]*/*", f"{name}/*/*"]


def prepare_client() -> None:
    """Keeps the library's log to errors, its bars to terminals, and its answers within bounds."""
    bound_answers()
    if "HF_HUB_VERBOSITY" not in os.environ:
        logging.set_verbosity_error()
    if not sys.stderr.isatty():
        disable_progress_bars()


def name_fault(error: BaseException) -> str:
    """Returns an error in a few words, without those that may hold an address."""
    return str(error) if isinstance(error, OversizedAnswer) else type(error).__name__


def _download_problem(
    problem: type[Problem],
    here: str,
    place: Path,
    told: Mapping[str, str | None],
    error: Exception,
) -> Problem:
    cause = (isinstance(error, LocalEntryNotFoundError) and error.__cause__) or error
    if isinstance(cause, OSError) and cause.errno:
        return problem(
            f"{constants.HF_HUB_CACHE} cannot hold {place}: {os.strerror(cause.errno)}",
            next_step="free some space, or let HF_HOME name a place that can be written",
        )
    status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
    denied = status in DENIED_STATUS and not isinstance(cause, RepositoryNotFoundError)
    kind = PermissionError if denied else type(error)
    said, next_step = next(row[1:] for row in ERROR_MESSAGES if issubclass(kind, row[0]))
    reason = f"HTTP {status}" if status else name_fault(cause)
    return problem(
        f"{here}the hub {said.format(**told, reason=reason)}", next_step=next_step.format(**told)
    )
