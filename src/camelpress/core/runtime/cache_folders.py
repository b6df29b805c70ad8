"""Temporary cache folders for libraries on machines without a writable home."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

CACHE_VARIABLES = ("MPLCONFIGDIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")


def provide_cache_folders() -> None:
    """Sets each cache variable without a writable folder to a temporary folder.

    The folder is deleted at the end of the process. An unwritable folder in a variable is replaced,
    too, since matplotlib would otherwise print a warning of two lines.
    """
    folders = {name: os.environ.get(name) for name in CACHE_VARIABLES}
    missing = [name for name, folder in folders.items() if folder and not _is_usable(folder)]
    if not all(folders.values()) and not _has_cache_folder():
        missing += [name for name, folder in folders.items() if not folder]
    if not missing:
        return
    try:
        parent = tempfile.mkdtemp(prefix="camelpress-caches-")
    except OSError:  # no folder is writable at all; the library reports its own error
        return
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    os.environ.update({name: str(Path(parent, name.lower())) for name in missing})


def _has_cache_folder() -> bool:
    """Returns True if every default cache folder of the libraries can be written or created."""
    xdg = [os.environ.get(name) for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME")]
    names = (*filter(None, xdg), "~/.cache", "~/.config", "~/.triton")
    return all(_is_usable(name) for name in names)


def _is_usable(name: str) -> bool:
    """Returns True if a folder of this name can be written or created."""
    try:
        return _is_writable(Path(name).expanduser())
    except (OSError, RuntimeError, ValueError):  # RuntimeError: the home folder is unknown
        return False


def _is_writable(folder: Path) -> bool:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
