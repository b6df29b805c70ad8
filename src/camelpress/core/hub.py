"""A checkpoint from a model repository on the Hugging Face hub.

huggingface_hub fetches into its own cache and heeds its own settings: HF_TOKEN, HF_ENDPOINT,
HF_HOME, HF_HUB_OFFLINE. Its words are not passed on; they can hold signed addresses.
"""

from __future__ import annotations

import os
import re
import sys
from functools import partial
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx, logging  # type: ignore[attr-defined] # httpx is public
from huggingface_hub.utils.tqdm import disable_progress_bars

from camelpress.core.errors import CheckpointProblem
from camelpress.core.origin import COMPANIONS

SAFETENSORS, PICKLES = "model*.safetensors*", "pytorch_model*.bin*"  # weights and their index

DENIED = (401, 403)

# fmt: off
FAULTS: tuple[tuple[type[Exception], str, str], ...] = (  # the hub ..., what to do; the first fits
    (RevisionNotFoundError,   "has no revision {revision} of {repository}",
     "name a branch, a tag or a commit of that model"),
    (GatedRepoError,          "does not give {repository} to everyone",
     "accept the licence on its page and log in with `hf auth login`, or set HF_TOKEN"),
    (RepositoryNotFoundError, "has no model {repository}, or does not show it",
     "correct the name; for a private model, log in with `hf auth login` or set HF_TOKEN"),
    (PermissionError,         "refuses this login ({reason})",
     "log in again with `hf auth login`, or correct HF_TOKEN"),
    (LocalEntryNotFoundError, "is out of reach ({reason}) and {repository} is not all in its cache",
     "run the same command once with a connection and without HF_HUB_OFFLINE"),
    (Exception,               "broke off in the middle of {repository} ({reason})",
     "run the same command again: it resumes with the files that are not complete"),
)
# fmt: on


def fetch(named: re.Match[str], place: Path) -> Path:
    """The snapshot of a repository in the cache; its folder has the name of the commit.

    Args:
        named: what `origin.HUB_ID` found.
        place: as it was given.
    Raises:
        CheckpointProblem: as `origin.locate`.
    """
    try:
        return _fetched(named["repository"], named["revision"])
    except (OSError, httpx.HTTPError, RuntimeError) as error:  # hf_xet knows no other error
        raise _problem(place, named, error) from error


def _fetched(repository: str, revision: str | None) -> Path:
    if "HF_HUB_VERBOSITY" not in os.environ:
        logging.set_verbosity_error()
    if not sys.stderr.isatty():
        disable_progress_bars()
    fetch = partial(snapshot_download, repository, ignore_patterns="*/*")  # files of folders
    wanted = ["config.json", SAFETENSORS, *COMPANIONS]
    folder = Path(fetch(revision=revision, allow_patterns=wanted))
    if not any(folder.glob(SAFETENSORS)):
        fetch(revision=folder.name, allow_patterns=PICKLES)
    return folder


def _problem(place: Path, named: re.Match[str], error: Exception) -> CheckpointProblem:
    cause = (isinstance(error, LocalEntryNotFoundError) and error.__cause__) or error
    if isinstance(cause, OSError) and cause.errno:
        return CheckpointProblem(
            f"{constants.HF_HUB_CACHE} cannot hold {place}: {os.strerror(cause.errno)}",
            next_step="free some space, or let HF_HOME name a place that can be written",
        )
    status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
    denied = status in DENIED and not isinstance(cause, RepositoryNotFoundError)
    kind = PermissionError if denied else type(error)
    said, next_step = next(row[1:] for row in FAULTS if issubclass(kind, row[0]))
    reason = f"HTTP {status}" if status else type(cause).__name__
    said = said.format(**named.groupdict(), reason=reason)
    here = "" if named["prefix"] else f"{place} is not a folder here, and "
    return CheckpointProblem(f"{here}the hub {said}", next_step=next_step)
