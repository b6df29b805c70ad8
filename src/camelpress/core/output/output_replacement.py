"""An earlier output gives way to a new one in steps, each of which a kill may follow.

Before the old output moves to `OUT.old` it gets a mark with the list of its files. So the next run
tells it from a folder of the user's, and either brings it back or finishes its removal. An output
that is removed for good has another mark, after which nothing of it comes back.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from camelpress.core.output.folder_lock import held
from camelpress.core.output.output_contents import listed_files, remove_all, set_aside
from camelpress.core.output.unfinished_output import FINGERPRINT, TORN, Mark

REPLACED = {"stage": "replaced"}  # content of the mark in an output that gives way
REMOVED = {"stage": "removed"}  # content of the mark in an output that is removed for good


def take_place(partial: Path, target: Path) -> None:
    """Give a complete folder its name; an earlier output under that name is removed."""
    if target.is_symlink():
        target.unlink()
    if target.is_dir():
        Mark(REPLACED, sorted(listed_files(target))).write(target)
        target.rename(old_place(target))
    try:
        (partial / FINGERPRINT).unlink(missing_ok=True)
        partial.rename(target)
    except OSError:
        _bring_back(target)
        raise
    if _gives_way(old_place(target)):
        _remove_old(target)


def settle(target: Path) -> None:
    """Finish the removal of an output that a kill cut short, or finish or undo its replacement."""
    if _is_marked(target, REMOVED):
        with held(target) as is_free:
            if is_free:
                _remove_marked(target, target)
    old, partial = old_place(target), Path(f"{target}.partial")
    if old.is_dir() and not any(old.iterdir()):
        old.rmdir()  # a kill fell between the removal of the last file and this
    if not (_gives_way(old) or _gives_way(target) or (target / TORN).is_file()):
        return
    with held(partial if partial.is_dir() else target if target.is_dir() else old) as is_free:
        if not is_free:
            return
        _bring_back(target)
        if _gives_way(old):
            _remove_old(target)


def remove_output(folder: Path) -> None:
    """Delete an output; a file in it that its manifest does not list is set aside."""
    Mark(REMOVED, sorted(listed_files(folder))).write(folder)
    _remove_marked(folder, folder)


def old_place(target: Path) -> Path:
    """The name that an output has while another takes its place."""
    return Path(f"{target.absolute()}.old")


def _bring_back(target: Path) -> None:
    """Give an output that was to be replaced its name again, if no other has it, and no mark."""
    if _gives_way(old_place(target)) and not target.exists():
        old_place(target).rename(target)
    for name in (TORN, FINGERPRINT) if target.is_dir() else ():
        (target / name).unlink(missing_ok=True)


def _remove_old(target: Path) -> None:
    _remove_marked(old_place(target), target)


def _remove_marked(folder: Path, target: Path) -> None:
    mark = Mark.read(folder)
    listed = {FINGERPRINT, TORN, *(mark.writes if mark else ())}
    set_aside(folder, target, lambda name: name not in listed)
    remove_all(folder, lambda name: name == FINGERPRINT)
    (folder / FINGERPRINT).unlink(missing_ok=True)
    folder.rmdir()


def _gives_way(folder: Path) -> bool:
    return _is_marked(folder, REPLACED)


def _is_marked(folder: Path, made_from: Mapping[str, str]) -> bool:
    mark = Mark.read(folder)
    return mark is not None and mark.made_from == made_from
