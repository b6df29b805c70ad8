"""Folders in which libraries keep what they compiled or drew, where nobody has a writable home."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

FOLDERS = ("MPLCONFIGDIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")


def provide_caches() -> None:
    """Name a temporary folder, which goes with the process, for each cache without a place."""
    missing = [name for name in FOLDERS if not os.environ.get(name)]
    if not missing or _has_cache_folder():
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
    try:
        return all(_can_be_written(Path(name).expanduser()) for name in names)
    except (OSError, RuntimeError):  # RuntimeError: nobody knows a home
        return False


def _can_be_written(place: Path) -> bool:
    while not place.exists() and place != place.parent:
        place = place.parent
    return place.is_dir() and os.access(place, os.W_OK | os.X_OK)
