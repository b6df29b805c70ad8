"""Files of an output: its own listed files, and foreign files, never deleted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator
from fnmatch import fnmatchcase
from itertools import chain, count
from pathlib import Path

from camelpress.core.files.file_hashes import CHECKSUM_FILE, REPORT_SUFFIX
from camelpress.core.files.regular_files import read_regular
from camelpress.core.input_limits import MAX_JSON_BYTES
from camelpress.core.progress import note

REPORT_PATTERNS = (f"*{REPORT_SUFFIX}", "report.json")
OUTPUT_MARKERS = (*REPORT_PATTERNS, CHECKSUM_FILE)  # one of them is in every output


def is_camelpress_output(folder: Path) -> bool:
    """Returns True if a folder is a finished output of camelpress."""
    return any(path for marker in OUTPUT_MARKERS for path in folder.glob(marker))


def list_files(folder: Path) -> list[str]:
    """Lists the relative names of all files and links below a folder, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in _walk_files(folder))


def read_output_files(folder: Path) -> set[str]:
    """Reads the names of an output's files from its own list, the list included.

    A release lists its files in `SHA256SUMS`, any other output in its report. An output may contain
    the reports of earlier stages; its own report lists the others.
    """
    if (folder / CHECKSUM_FILE).is_file():
        return {CHECKSUM_FILE, *_checksum_names(folder / CHECKSUM_FILE)}
    reports = {path.name: path for pattern in REPORT_PATTERNS for path in folder.glob(pattern)}
    lists = {name: {name, *_report_names(path)} for name, path in sorted(reports.items())}
    return max(lists.values(), key=lambda names: len(names & lists.keys()), default=set())


def matches_file_name(name: str, patterns: Collection[str]) -> bool:
    """Returns True if a name equals or matches one of the patterns."""
    return name in patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


def set_aside_foreign_files(folder: Path, target: Path, is_foreign: Callable[[str], bool]) -> None:
    """Moves foreign files out of a folder into a new folder beside `target`.

    Args:
        folder: Folder with the files.
        target: Output; the new folder is `TARGET.aside`, numbered if that exists.
        is_foreign: Returns True for the relative name of a file to move.
    """
    names = [name for name in list_files(folder) if is_foreign(name)]
    if not names:
        return
    aside = _unused_path(Path(f"{target}.aside"))
    for name in names:
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).rename(aside / name)
    rest = f" and {len(names) - 1} more files" if len(names) > 1 else ""
    note(f"{target.name}: {names[0]}{rest} did not belong there, see {aside}")


def remove_files(folder: Path, keep: Callable[[str], bool]) -> None:
    """Deletes the files below a folder except those to keep, then all empty folders."""
    for path in _walk_files(folder):
        if not keep(path.relative_to(folder).as_posix()):
            path.unlink()
    folders = [path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink()]
    for path in sorted(folders, key=lambda path: len(path.parts), reverse=True):
        if not any(path.iterdir()):
            path.rmdir()


def _walk_files(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            yield from _walk_files(path)
        else:
            yield path


def _unused_path(path: Path) -> Path:
    """Returns a path, numbered if necessary, with nothing or an empty folder at it."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in count(2))
    return next(candidate for candidate in chain([path], numbered) if _is_unused(candidate))


def _is_unused(path: Path) -> bool:
    return not list_files(path) if path.is_dir() else not os.path.lexists(path)


def _checksum_names(path: Path) -> Iterator[str]:
    text = read_regular(path, MAX_JSON_BYTES).decode("utf-8", "replace")
    for line in text.splitlines():
        yield line.partition("  ")[2]


def _report_names(path: Path) -> list[str]:
    try:
        report = json.loads(read_regular(path, MAX_JSON_BYTES))
    except (OSError, ValueError, RecursionError):
        return []
    names = report.get("files") if isinstance(report, dict) else None
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
