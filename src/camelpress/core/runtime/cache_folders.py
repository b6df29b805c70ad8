"""Folders in which libraries keep what they compiled or drew, where nobody has a writable home."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

CACHE_VARIABLES = ("MPLCONFIGDIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")


def provide_cache_folders() -> None:
    """Name a temporary folder, which goes with the process, for each cache without a place.

    A cache has none if its variable names a folder that cannot be written, too: matplotlib would
    say so in two lines of its own.
    """
    named = {name: os.environ.get(name) for name in CACHE_VARIABLES}
    missing = [name for name, place in named.items() if place and not _is_usable(place)]
    if not all(named.values()) and not _has_cache_folder():
        missing += [name for name, place in named.items() if not place]
    if not missing:
        return
    try:
        folder = tempfile.mkdtemp(prefix="camelpress-caches-")
    except OSError:  # no folder can be written at all: the library says what it lacks
        return
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ.update({name: str(Path(folder, name.lower())) for name in missing})


def _has_cache_folder() -> bool:
    """Returns True if every cache folder of the libraries can be written or made."""
    xdg = [os.environ.get(name) for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME")]
    names = (*filter(None, xdg), "~/.cache", "~/.config", "~/.triton")
    return all(_is_usable(name) for name in names)


def _is_usable(name: str) -> bool:
    """Returns True if a folder of this name can be written or made."""
    try:
        return _is_writable(Path(name).expanduser())
    except (OSError, RuntimeError, ValueError):  # RuntimeError: nobody knows a home
        return False


def _is_writable(place: Path) -> bool:
    while not place.exists() and place != place.parent:
        place = place.parent
    return place.is_dir() and os.access(place, os.W_OK | os.X_OK)
