"""Where a checkpoint or a text lies: here, or in a repository on the Hugging Face hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from camelpress.core.errors import CheckpointProblem, RecipeProblem
from camelpress.core.files.folder_recognizer import not_a_folder
from camelpress.core.progress import note

TEMPLATES = "additional_chat_templates"  # folder of chat templates beside the default one
COMPANIONS = (  # what lies beside weights and goes where they go
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    f"{TEMPLATES}/*.jinja",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
    "llama_license.txt",
    "*-report.json",  # of the stages before: a checkpoint carries its history
)

HUB_ID = re.compile(
    r"(?P<prefix>hf:)?(?![^@]*--)(?!.*\.\.)"
    r"(?P<repository>\w(?:[\w.-]{0,94}\w)?/\w(?:[\w.-]{0,94}\w)?)(?<!\.git)"
    r"(?:@(?P<revision>\w[\w./-]*))?",
    re.ASCII,
)

HUB = "hf:"
PAGES = "https://huggingface.co"  # of repositories, for people
CARD = "README.md"
ATTRIBUTES = ".gitattributes"  # of the hub: which names are large files
DOWNLOADS = ".cache/huggingface"  # where its client notes what it fetched into a folder
FILE = re.compile(r"(?!.*(?:^|/)\.{0,2}(?:/|$))[^:\\]+")  # below the repository, plainly


@dataclass(frozen=True)
class Located:
    """A folder and its name: the path that was given, or `org/name@commit` on the hub."""

    folder: Path
    origin: str


@dataclass(frozen=True)
class LocatedFile:
    """A file, its name in reports, and the place that leads to these very bytes again.

    The name is that of the file, or `org/name@commit:file` on the hub.
    """

    path: Path
    name: str
    place: Path


def locate(place: Path) -> Located:
    """A folder as it is; `org/name`, `org/name@revision` or `hf:org/name@revision` from the hub.

    Of a repository only config, index, weights, card and `COMPANIONS` are fetched, pickled weights
    only where there are no safetensors, and nothing that is in the cache.

    Raises:
        CheckpointProblem: neither a folder nor the name of a repository; a repository or revision
            that is not there, or not for this user; the hub out of reach and not all in the cache;
            a connection that broke; a cache that cannot be written.
    """
    if place.is_dir():
        return Located(place, str(place))
    named = HUB_ID.fullmatch(str(place))
    if named is None or place.exists():
        raise not_a_folder(place)
    note(f"{place}: from the hub, as far as it is not in the cache")
    from camelpress.core.hub.hub_download import (
        fetch,  # a third of a second, and most places are folders
    )

    folder = fetch(named, place)
    return Located(folder, f"{named['repository']}@{folder.name}")


def locate_file(place: Path) -> LocatedFile:
    """A file as it is; `hf:org/name:file` or `hf:org/name@revision:file` of a data set on the hub.

    Only that file is fetched; a fetch that broke off goes on where it was, and what is in the
    cache is not fetched again.

    Raises:
        RecipeProblem: a name of a data set that names no file of it.
        DataProblem: a data set, revision or file that is not there, or not for this user; the hub
            out of reach and the file not in the cache; a connection that broke; a cache that
            cannot be written.
    """
    if not on_hub(place):
        return LocatedFile(place, place.name, place)
    name, _, file = str(place).removeprefix(HUB).partition(":")
    named = HUB_ID.fullmatch(HUB + name)
    if named is None or not FILE.fullmatch(file):
        raise RecipeProblem(
            f"{place} names no file of a data set on the hub",
            next_step=f"write it as {HUB}org/name:file.jsonl, or {HUB}org/name@revision:file.jsonl",
        )
    note(f"{place}: from the hub, if it is not in the cache")
    from camelpress.core.hub.hub_download import fetch_file

    path = fetch_file(named, file, place)
    commit = path.parts[-1 - len(PurePosixPath(file).parts)]
    found = f"{named['repository']}@{commit}:{file}"
    return LocatedFile(path, found, Path(HUB + found))


def locate_card(place: Path) -> LocatedFile:
    """The card of a folder, a file as it is, or the card of `org/name[@revision]` on the hub.

    Raises:
        CheckpointProblem: there is none; or as `locate`.
    """
    here = place / CARD if place.is_dir() else place
    if here.is_file():
        name = here.resolve().parent.name if here.name == CARD else here.name
        return LocatedFile(here, name, place)
    named = HUB_ID.fullmatch(str(place))
    if named is None or place.exists():
        raise CheckpointProblem(
            f"{place} has no card", next_step=f"give a folder with a {CARD}, or org/name on the hub"
        )
    from camelpress.core.hub.hub_download import fetch_card

    path = fetch_card(named, place)
    return LocatedFile(path, f"{named['repository']}@{path.parent.name}", place)


def on_hub(place: Path) -> bool:
    """Whether a text is named as one on the hub; a model may be named without the prefix."""
    return str(place).startswith(HUB)
