"""Where a checkpoint or a text lies: here, or in a repository on the Hugging Face hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from camelpress.core.errors import CheckpointProblem, RecipeProblem
from camelpress.core.files.folder_recognizer import not_a_folder_problem
from camelpress.core.progress import note

CHAT_TEMPLATES_FOLDER = (
    "additional_chat_templates"  # folder of chat templates beside the default one
)
SIDECAR_PATTERNS = (  # what lies beside weights and goes where they go
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    f"{CHAT_TEMPLATES_FOLDER}/*.jinja",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
    "llama_license.txt",
    "*-report.json",  # of the stages before: a checkpoint carries its history
)

REPO_ID_PATTERN = re.compile(
    r"(?P<prefix>hf:)?(?![^@]*--)(?!.*\.\.)"
    r"(?P<repository>\w(?:[\w.-]{0,94}\w)?/\w(?:[\w.-]{0,94}\w)?)(?<!\.git)"
    r"(?:@(?P<revision>\w[\w./-]*))?",
    re.ASCII,
)

HUB_PREFIX = "hf:"
HUB_URL = "https://huggingface.co"  # of repositories, for people
CARD_FILE = "README.md"
GITATTRIBUTES_FILE = ".gitattributes"  # of the hub: which names are large files
DOWNLOAD_CACHE = ".cache/huggingface"  # where its client notes what it fetched into a folder
REPO_FILE_PATTERN = re.compile(
    r"(?!.*(?:^|/)\.{0,2}(?:/|$))[^:\\]+"
)  # below the repository, plainly


@dataclass(frozen=True)
class ModelLocation:
    """A folder and its name: the path that was given, or `org/name@commit` on the hub."""

    folder: Path
    origin: str


@dataclass(frozen=True)
class FileLocation:
    """A file, its name in reports, and the place that leads to these very bytes again.

    The name is that of the file, or `org/name@commit:file` on the hub.
    """

    path: Path
    name: str
    place: Path


def locate_model(place: Path) -> ModelLocation:
    """A folder as it is; `org/name`, `org/name@revision` or `hf:org/name@revision` from the hub.

    Of a repository only config, index, weights, card and `COMPANIONS` are fetched, pickled weights
    only where there are no safetensors, and nothing that is in the cache.

    Raises:
        CheckpointProblem: neither a folder nor the name of a repository; a repository or revision
            that is not there, or not for this user; the hub out of reach and not all in the cache;
            a connection that broke; a cache that cannot be written.
    """
    if place.is_dir():
        return ModelLocation(place, str(place))
    named = REPO_ID_PATTERN.fullmatch(str(place))
    if named is None or place.exists():
        raise not_a_folder_problem(place)
    note(f"{place}: from the hub, as far as it is not in the cache")
    from camelpress.core.hub.hub_download import (
        download_model,  # a third of a second, and most places are folders
    )

    folder = download_model(named, place)
    return ModelLocation(folder, f"{named['repository']}@{folder.name}")


def locate_file(place: Path) -> FileLocation:
    """A file as it is; `hf:org/name:file` or `hf:org/name@revision:file` of a data set on the hub.

    Only that file is fetched; a fetch that broke off goes on where it was, and what is in the
    cache is not fetched again.

    Raises:
        RecipeProblem: a name of a data set that names no file of it.
        DataProblem: a data set, revision or file that is not there, or not for this user; the hub
            out of reach and the file not in the cache; a connection that broke; a cache that
            cannot be written.
    """
    if not is_hub_name(place):
        return FileLocation(place, place.name, place)
    name, _, file = str(place).removeprefix(HUB_PREFIX).partition(":")
    named = REPO_ID_PATTERN.fullmatch(HUB_PREFIX + name)
    if named is None or not REPO_FILE_PATTERN.fullmatch(file):
        raise RecipeProblem(
            f"{place} names no file of a data set on the hub",
            next_step=f"write it as {HUB_PREFIX}org/name:file.jsonl, or "
            f"{HUB_PREFIX}org/name@revision:file.jsonl",
        )
    note(f"{place}: from the hub, if it is not in the cache")
    from camelpress.core.hub.hub_download import download_dataset_file

    path = download_dataset_file(named, file, place)
    commit = path.parts[-1 - len(PurePosixPath(file).parts)]
    found = f"{named['repository']}@{commit}:{file}"
    return FileLocation(path, found, Path(HUB_PREFIX + found))


def locate_card(place: Path) -> FileLocation:
    """The card of a folder, a file as it is, or the card of `org/name[@revision]` on the hub.

    Raises:
        CheckpointProblem: there is none; or as `locate`.
    """
    here = place / CARD_FILE if place.is_dir() else place
    if here.is_file():
        name = here.resolve().parent.name if here.name == CARD_FILE else here.name
        return FileLocation(here, name, place)
    named = REPO_ID_PATTERN.fullmatch(str(place))
    if named is None or place.exists():
        raise CheckpointProblem(
            f"{place} has no card",
            next_step=f"give a folder with a {CARD_FILE}, or org/name on the hub",
        )
    from camelpress.core.hub.hub_download import download_card

    path = download_card(named, place)
    return FileLocation(path, f"{named['repository']}@{path.parent.name}", place)


def is_hub_name(place: Path) -> bool:
    """Whether a text is named as one on the hub; a model may be named without the prefix."""
    return str(place).startswith(HUB_PREFIX)
