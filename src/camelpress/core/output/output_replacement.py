"""Replaces an earlier output by a new one in steps, safe against a kill after any of them.

Before the old output moves to `OUT.old`, it gets a mark with the list of its files. The mark
distinguishes it from a folder of the user, so the next run either restores it or finishes its
removal. An output under permanent removal gets another mark and is never restored.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from camelpress.core.output.folder_lock import hold_folder
from camelpress.core.output.output_contents import (
    read_output_files,
    remove_files,
    set_aside_foreign_files,
)
from camelpress.core.output.unfinished_output import MARK_FILE, PARTIAL_MARK_FILE, OutputMark

REPLACEMENT_MARK = {"stage": "replaced"}  # content of the mark in an output under replacement
REMOVAL_MARK = {"stage": "removed"}  # content of the mark in an output under permanent removal


def replace_output(partial: Path, target: Path) -> None:
    """Renames a complete folder to its final name and removes an earlier output of that name."""
    if target.is_symlink():
        target.unlink()
    if target.is_dir():
        OutputMark(REPLACEMENT_MARK, sorted(read_output_files(target))).write(target)
        target.rename(backup_folder(target))
    try:
        (partial / MARK_FILE).unlink(missing_ok=True)
        partial.rename(target)
    except OSError:
        _restore_backup(target)
        raise
    if _is_under_replacement(backup_folder(target)):
        _remove_backup(target)


def finish_replacement(target: Path) -> None:
    """Finishes an interrupted removal of an output, or finishes or undoes its replacement."""
    if _is_marked(target, REMOVAL_MARK):
        with hold_folder(target) as is_free:
            if is_free:
                _remove_output_files(target, target)
    backup, partial = backup_folder(target), Path(f"{target}.partial")
    if backup.is_dir() and not any(backup.iterdir()):
        backup.rmdir()  # a kill came between the removal of the last file and this line
    if not (
        _is_under_replacement(backup)
        or _is_under_replacement(target)
        or (target / PARTIAL_MARK_FILE).is_file()
    ):
        return
    with hold_folder(
        partial if partial.is_dir() else target if target.is_dir() else backup
    ) as is_free:
        if not is_free:
            return
        _restore_backup(target)
        if _is_under_replacement(backup):
            _remove_backup(target)


def remove_output(folder: Path) -> None:
    """Deletes an output; files missing from its own list are set aside."""
    OutputMark(REMOVAL_MARK, sorted(read_output_files(folder))).write(folder)
    _remove_output_files(folder, folder)


def backup_folder(target: Path) -> Path:
    """Returns the temporary path of an output under replacement."""
    return Path(f"{target.absolute()}.old")


def _restore_backup(target: Path) -> None:
    """Moves a backup to its original name if that is free, and deletes its mark."""
    if _is_under_replacement(backup_folder(target)) and not target.exists():
        backup_folder(target).rename(target)
    for name in (PARTIAL_MARK_FILE, MARK_FILE) if target.is_dir() else ():
        (target / name).unlink(missing_ok=True)


def _remove_backup(target: Path) -> None:
    _remove_output_files(backup_folder(target), target)


def _remove_output_files(folder: Path, target: Path) -> None:
    mark = OutputMark.read(folder)
    names = {MARK_FILE, PARTIAL_MARK_FILE, *(mark.writes if mark else ())}
    set_aside_foreign_files(folder, target, lambda name: name not in names)
    remove_files(folder, lambda name: name == MARK_FILE)
    (folder / MARK_FILE).unlink(missing_ok=True)
    folder.rmdir()


def _is_under_replacement(folder: Path) -> bool:
    return _is_marked(folder, REPLACEMENT_MARK)


def _is_marked(folder: Path, made_from: Mapping[str, str]) -> bool:
    mark = OutputMark.read(folder)
    return mark is not None and mark.made_from == made_from
