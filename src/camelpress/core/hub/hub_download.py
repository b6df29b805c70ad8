"""Downloads checkpoints and data set files from repositories on the Hugging Face hub.

huggingface_hub downloads into its own cache and reads its own settings: HF_TOKEN, HF_ENDPOINT,
HF_HOME, HF_HUB_OFFLINE. Its error messages are not shown, since they can contain signed addresses.
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
from camelpress.core.file_names import CARD_FILE, CHAT_TEMPLATES_FOLDER, SIDECAR_PATTERNS
from camelpress.core.hub.bounded_answers import OversizedAnswer, bound_answers
from camelpress.core.hub.repo_id import HUB_PREFIX, REPO_ID_PATTERN

SAFETENSORS, PICKLES = "model*.safetensors*", "pytorch_model*.bin*"  # weights and their index

DENIED_STATUS = (401, 403)
RESPONSE_ERRORS = (  # errors of the client at an answer of unexpected form
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
)
# hf_xet raises nothing but RuntimeError.
DOWNLOAD_ERRORS = (OSError, httpx2.HTTPError, RuntimeError, *RESPONSE_ERRORS)

# fmt: off
ERROR_MESSAGES: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str, str], ...] = (
    # error classes; message after "the hub"; next step. The first matching row counts.
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


def download_model(repo_id: re.Match[str], place: Path) -> Path:
    """Downloads the weights, configs and sidecars of a model repository.

    Args:
        repo_id: Match of `REPO_ID_PATTERN`.
        place: Model name from the user, for messages.
    Returns:
        Snapshot folder in the cache, named after the commit.
    Raises:
        CheckpointProblem: See `locate_model`.
    """
    try:
        return _download_snapshot(repo_id["repository"], repo_id["revision"])
    except DOWNLOAD_ERRORS as error:
        words = {"kind": "model", **repo_id.groupdict()}
        prefix = "" if repo_id["prefix"] else f"{place} is not a folder here, and "
        raise _download_problem(CheckpointProblem, prefix, place, words, error) from error


def download_dataset_file(repo_id: re.Match[str], file: str, place: Path) -> Path:
    """Downloads one file of a data set repository.

    Args:
        repo_id: Match of `REPO_ID_PATTERN`.
        file: Name of the file in the repository.
        place: File name from the user, for messages.
    Returns:
        Path in the cache, below a folder named after the commit.
    Raises:
        DataProblem: See `locate_file`.
    """
    prepare_client()
    try:
        path = hf_hub_download(
            repo_id["repository"], file, repo_type="dataset", revision=repo_id["revision"]
        )
    except DOWNLOAD_ERRORS as error:
        words = {"kind": "data set", "file": file, **repo_id.groupdict()}
        raise _download_problem(DataProblem, "", place, words, error) from error
    return Path(path)


def download_card(repo_id: re.Match[str], place: Path) -> Path:
    """Downloads the card of a model repository.

    Args:
        repo_id: Match of `REPO_ID_PATTERN`.
        place: Model name from the user, for messages.
    Returns:
        Path in the cache, in a folder named after the commit.
    Raises:
        CheckpointProblem: See `locate_card`.
    """
    prepare_client()
    try:
        return Path(hf_hub_download(repo_id["repository"], CARD_FILE, revision=repo_id["revision"]))
    except DOWNLOAD_ERRORS as error:
        words = {"kind": "model", "file": CARD_FILE, **repo_id.groupdict()}
        raise _download_problem(CheckpointProblem, "", place, words, error) from error


def download_release(place: Path) -> tuple[Path, Path]:
    """Downloads all files of a model repository.

    Args:
        place: Repository as hf:org/name[@revision].
    Returns:
        Snapshot folder in the cache, and the folder of the cache.
    Raises:
        CheckpointProblem: See `locate_model`.
    """
    prepare_client()
    repo_id = REPO_ID_PATTERN.fullmatch(str(place))
    if repo_id is None:
        raise CheckpointProblem(
            f"{place} names no repository", next_step=f"write it as {HUB_PREFIX}org/name[@revision]"
        )
    try:
        folder = snapshot_download(repo_id["repository"], revision=repo_id["revision"])
    except DOWNLOAD_ERRORS as error:
        words = {"kind": "model", **repo_id.groupdict()}
        raise _download_problem(CheckpointProblem, "", place, words, error) from error
    return Path(folder), Path(constants.HF_HUB_CACHE)


def _download_snapshot(repository: str, revision: str | None) -> Path:
    prepare_client()
    fetch = partial(
        snapshot_download, repository, ignore_patterns=exclude_other_folders(CHAT_TEMPLATES_FOLDER)
    )
    patterns = ["config.json", SAFETENSORS, CARD_FILE, *SIDECAR_PATTERNS]
    folder = Path(fetch(revision=revision, allow_patterns=patterns))
    if not any(folder.glob(SAFETENSORS)):
        fetch(revision=folder.name, allow_patterns=PICKLES)
    return folder


def exclude_other_folders(name: str) -> list[str]:
    """Returns patterns for the files in all folders except the one of this name."""
    prefixes = [name[:length] for length in range(len(name))]
    other_letters = [
        f"{prefix}[!{letter}/]*/*" for prefix, letter in zip(prefixes, name, strict=True)
    ]
    shorter_names = [f"{prefix}/*" for prefix in prefixes if prefix]
    return [*other_letters, *shorter_names, f"{name}[!/]*/*", f"{name}/*/*"]


def prepare_client() -> None:
    """Bounds the client's answers, limits its log to errors and its progress bars to terminals."""
    bound_answers()
    if "HF_HUB_VERBOSITY" not in os.environ:
        logging.set_verbosity_error()
    if not sys.stderr.isatty():
        disable_progress_bars()


def name_fault(error: BaseException) -> str:
    """Describes an error in a few words, without any address."""
    return str(error) if isinstance(error, OversizedAnswer) else type(error).__name__


def _download_problem(
    problem_class: type[Problem],
    prefix: str,
    place: Path,
    words: Mapping[str, str | None],
    error: Exception,
) -> Problem:
    cause = (isinstance(error, LocalEntryNotFoundError) and error.__cause__) or error
    if isinstance(cause, OSError) and cause.errno:
        return problem_class(
            f"{constants.HF_HUB_CACHE} cannot hold {place}: {os.strerror(cause.errno)}",
            next_step="free some space, or set HF_HOME to a folder that can be written",
        )
    status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
    is_denied = status in DENIED_STATUS and not isinstance(cause, RepositoryNotFoundError)
    error_class = PermissionError if is_denied else type(error)
    message, next_step = next(row[1:] for row in ERROR_MESSAGES if issubclass(error_class, row[0]))
    reason = f"HTTP {status}" if status else name_fault(cause)
    return problem_class(
        f"{prefix}the hub {message.format(**words, reason=reason)}",
        next_step=next_step.format(**words),
    )
