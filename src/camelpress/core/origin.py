"""Where a checkpoint lies: in a folder here, or in a model repository on the Hugging Face hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from camelpress.core.errors import CheckpointProblem
from camelpress.core.progress import note

COMPANIONS = (  # what lies beside weights and goes where they go
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    "LICENSE*",
    "NOTICE*",
    "llama_license.txt",
    "*-report.json",  # of the stages before: a checkpoint carries its history
)

HUB_ID = re.compile(
    r"(?P<prefix>hf:)?(?![^@]*--)(?!.*\.\.)"
    r"(?P<repository>\w(?:[\w.-]{0,94}\w)?/\w(?:[\w.-]{0,94}\w)?)(?<!\.git)"
    r"(?:@(?P<revision>\w[\w./-]*))?",
    re.ASCII,
)


@dataclass(frozen=True)
class Located:
    """A folder and its name: the path that was given, or `org/name@commit` on the hub."""

    folder: Path
    origin: str


def locate(place: Path) -> Located:
    """A folder as it is; `org/name`, `org/name@revision` or `hf:org/name@revision` from the hub.

    Of a repository only config, index, weights and `COMPANIONS` are fetched, pickled weights only
    where there are no safetensors, and nothing that is in the cache.

    Raises:
        CheckpointProblem: neither a folder nor the name of a repository; a repository or revision
            that is not there, or not for this user; the hub out of reach and not all in the cache;
            a connection that broke; a cache that cannot be written.
    """
    if place.is_dir():
        return Located(place, str(place))
    named = HUB_ID.fullmatch(str(place))
    if named is None or place.exists():
        raise CheckpointProblem(
            f"{place} is not a folder", next_step="give a Hugging Face checkpoint folder"
        )
    note(f"{place}: from the hub, as far as it is not in the cache")
    from camelpress.core.hub import fetch  # a third of a second, and most places are folders

    folder = fetch(named, place)
    return Located(folder, f"{named['repository']}@{folder.name}")
