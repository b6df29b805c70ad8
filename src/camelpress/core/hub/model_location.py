"""Locations of checkpoints and texts: local paths, or repositories on the Hugging Face hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from camelpress.core.errors import CheckpointProblem, RecipeProblem
from camelpress.core.file_names import CARD_FILE
from camelpress.core.files.folder_recognizer import not_a_folder_problem
from camelpress.core.hub.repo_id import HUB_PREFIX, REPO_ID_PATTERN
from camelpress.core.progress import note

REPO_FILE_PATTERN = re.compile(r"(?!.*(?:^|/)\.{0,2}(?:/|$))[^:\\]+")  # path without . or ..


@dataclass(frozen=True)
class ModelLocation:
    """A folder and its name: its path, or `org/name@commit` on the hub."""

    folder: Path
    origin: str


@dataclass(frozen=True)
class FileLocation:
    """A file, its name in reports, and a reproducible location.

    The name is the file name, or `org/name@commit:file` on the hub. The place is the path, or
    `hf:org/name@commit:file`.
    """

    path: Path
    name: str
    place: Path


def locate_model(place: Path) -> ModelLocation:
    """Returns a local folder, or downloads a model repository from the hub.

    Only config, index, weights, card and `SIDECAR_PATTERNS` are downloaded, pickled weights only
    without safetensors. Files in the cache are not downloaded again.

    Args:
        place: Folder, or `org/name`, `org/name@revision` or `hf:org/name@revision`.
    Raises:
        CheckpointProblem: The place is neither a folder nor a repository name; the repository or
            revision is missing or denied to this user; the hub is out of reach with an incomplete
            cache; the connection broke; the cache cannot be written.
    """
    if place.is_dir():
        return ModelLocation(place, str(place))
    repo_id = REPO_ID_PATTERN.fullmatch(str(place))
    if repo_id is None or place.exists():
        raise not_a_folder_problem(place)
    note(f"{place}: downloading from the hub, except for cached files")
    # The import takes 0.3 s, and most places are local folders.
    from camelpress.core.hub.hub_download import download_model

    folder = download_model(repo_id, place)
    return ModelLocation(folder, f"{repo_id['repository']}@{folder.name}")


def locate_file(place: Path) -> FileLocation:
    """Returns a local file, or downloads one file of a data set from the hub.

    An interrupted download resumes, and a cached file is not downloaded again.

    Args:
        place: File path, or `hf:org/name:file` or `hf:org/name@revision:file`.
    Raises:
        RecipeProblem: The place names a data set without a file.
        DataProblem: The data set, revision or file is missing or denied to this user; the hub is
            out of reach and the file not in the cache; the connection broke; the cache cannot be
            written.
    """
    if not is_hub_name(place):
        return FileLocation(place, place.name, place)
    name, _, file = str(place).removeprefix(HUB_PREFIX).partition(":")
    repo_id = REPO_ID_PATTERN.fullmatch(HUB_PREFIX + name)
    if repo_id is None or not REPO_FILE_PATTERN.fullmatch(file):
        raise RecipeProblem(
            f"{place} names no file of a data set on the hub",
            next_step=f"write it as {HUB_PREFIX}org/name:file.jsonl, or "
            f"{HUB_PREFIX}org/name@revision:file.jsonl",
        )
    note(f"{place}: downloading from the hub, unless cached")
    from camelpress.core.hub.hub_download import download_dataset_file

    path = download_dataset_file(repo_id, file, place)
    commit = path.parts[-1 - len(PurePosixPath(file).parts)]
    full_name = f"{repo_id['repository']}@{commit}:{file}"
    return FileLocation(path, full_name, Path(HUB_PREFIX + full_name))


def locate_card(place: Path) -> FileLocation:
    """Returns a local model card, or downloads the card of a model repository.

    Args:
        place: Folder with a card, file, or `org/name[@revision]` on the hub.
    Raises:
        CheckpointProblem: No card exists, or the download fails as in `locate_model`.
    """
    local_path = place / CARD_FILE if place.is_dir() else place
    if local_path.is_file():
        is_card = local_path.name == CARD_FILE
        name = local_path.resolve().parent.name if is_card else local_path.name
        return FileLocation(local_path, name, place)
    repo_id = REPO_ID_PATTERN.fullmatch(str(place))
    if repo_id is None or place.exists():
        raise CheckpointProblem(
            f"{place} has no card",
            next_step=f"give a folder with a {CARD_FILE}, or org/name on the hub",
        )
    from camelpress.core.hub.hub_download import download_card

    path = download_card(repo_id, place)
    return FileLocation(path, f"{repo_id['repository']}@{path.parent.name}", place)


def is_hub_name(place: Path) -> bool:
    """Returns True for a name with the hub prefix; the prefix is optional for models."""
    return str(place).startswith(HUB_PREFIX)
