"""An earlier output gives way to a new one in steps, each of which a kill may follow.

Before the old output moves to `OUT.old` it gets a mark with the list of its files. So the next run
tells it from a folder of the user's, and either brings it back or finishes its removal. An output
that is removed for good has another mark, after which nothing of it comes back.
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

REMOVAL_MARK = {"stage": "replaced"}  # content of the mark in an output that gives way
REMOVED = {"stage": "removed"}  # content of the mark in an output that is removed for good


def replace_output(partial: Path, target: Path) -> None:
    """Give a complete folder its name; an earlier output under that name is removed."""
    if target.is_symlink():
        target.unlink()
    if target.is_dir():
        OutputMark(REMOVAL_MARK, sorted(read_output_files(target))).write(target)
        target.rename(backup_folder(target))
    try:
        (partial / MARK_FILE).unlink(missing_ok=True)
        partial.rename(target)
    except OSError:
        _restore_backup(target)
        raise
    if _is_marked_for_removal(backup_folder(target)):
        _remove_backup(target)


def finish_replacement(target: Path) -> None:
    """Finish the removal of an output that a kill cut short, or finish or undo its replacement."""
    if _is_marked(target, REMOVED):
        with hold_folder(target) as is_free:
            if is_free:
                _remove_output_files(target, target)
    old, partial = backup_folder(target), Path(f"{target}.partial")
    if old.is_dir() and not any(old.iterdir()):
        old.rmdir()  # a kill fell between the removal of the last file and this
    if not (
        _is_marked_for_removal(old)
        or _is_marked_for_removal(target)
        or (target / PARTIAL_MARK_FILE).is_file()
    ):
        return
    with hold_folder(
        partial if partial.is_dir() else target if target.is_dir() else old
    ) as is_free:
        if not is_free:
            return
        _restore_backup(target)
        if _is_marked_for_removal(old):
            _remove_backup(target)


def remove_output(folder: Path) -> None:
    """Delete an output; a file in it that its manifest does not list is set aside."""
    OutputMark(REMOVED, sorted(read_output_files(folder))).write(folder)
    _remove_output_files(folder, folder)


def backup_folder(target: Path) -> Path:
    """The name that an output has while another takes its place."""
    return Path(f"{target.absolute()}.old")


def _restore_backup(target: Path) -> None:
    """Give an output that was to be replaced its name again, if no other has it, and no mark."""
    if _is_marked_for_removal(backup_folder(target)) and not target.exists():
        backup_folder(target).rename(target)
    for name in (PARTIAL_MARK_FILE, MARK_FILE) if target.is_dir() else ():
        (target / name).unlink(missing_ok=True)


def _remove_backup(target: Path) -> None:
    _remove_output_files(backup_folder(target), target)


def _remove_output_files(folder: Path, target: Path) -> None:
    mark = OutputMark.read(folder)
    listed = {MARK_FILE, PARTIAL_MARK_FILE, *(mark.writes if mark else ())}
    set_aside_foreign_files(folder, target, lambda name: name not in listed)
    remove_files(folder, lambda name: name == MARK_FILE)
    (folder / MARK_FILE).unlink(missing_ok=True)
    folder.rmdir()


def _is_marked_for_removal(folder: Path) -> bool:
    return _is_marked(folder, REMOVAL_MARK)


def _is_marked(folder: Path, made_from: Mapping[str, str]) -> bool:
    mark = OutputMark.read(folder)
    return mark is not None and mark.made_from == made_from
