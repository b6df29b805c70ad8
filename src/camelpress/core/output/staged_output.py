"""Atomic outputs: a folder gets its final name only after complete and successful work."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import TypedDict

from camelpress.core.errors import Interruption, OutputExists, OutputProblem, Problem, RecipeProblem
from camelpress.core.output.durable_writes import disk_errors, sync_tree
from camelpress.core.output.folder_lock import hold_folder
from camelpress.core.output.output_contents import (
    is_camelpress_output,
    list_files,
    matches_file_name,
    set_aside_foreign_files,
)
from camelpress.core.output.output_replacement import (
    backup_folder,
    finish_replacement,
    replace_output,
)
from camelpress.core.output.unfinished_output import (
    MARK_FILE,
    TEMPORARY_FILES,
    ReconcileInputs,
    ResumeKey,
    begin_output,
    discard_output,
    has_finished_work,
)
from camelpress.core.progress import note

STOP_ERRORS = (Interruption, KeyboardInterrupt)
ANY_FILE = ("*",)


class StagingOptions(TypedDict, total=False):
    """Options of `staged`."""

    force: bool
    made_from: ResumeKey | None
    restart: bool
    writes: Collection[str]
    reconcile: ReconcileInputs | None


@contextmanager
def staged(
    target: Path,
    *,
    force: bool = False,
    made_from: ResumeKey | None = None,
    restart: bool = False,
    writes: Collection[str] = ANY_FILE,
    reconcile: ReconcileInputs | None = None,
) -> Iterator[Path]:
    """Yields a folder beside `target` and renames it to `target` after a successful block.

    Args:
        target: Final path of the output.
        force: True to replace an earlier output.
        made_from: Resume key: name to value of everything with an influence on the output's bytes.
            A block stopped, killed or failed for any reason but its inputs leaves the folder, and
            the next block with the same key resumes from it. None always discards the folder.
        restart: True to discard an unfinished output with another resume key.
        writes: Names and patterns of the files written by the block. Any other file in the folder
            is set aside before the rename.
        reconcile: Passed to `begin_output`, for inputs touched since the unfinished output began.
    Yields:
        Path of the folder for the files of the output.
    Raises:
        OutputExists: `require_free_output` fails at the start or the end, or the folder beside
            `target` is not an unfinished output.
        OutputProblem: There is no space or no write permission, another process writes there, or
            the unfinished output there has another resume key.
    """
    require_free_output(target, force=force)
    target = target.absolute()  # "." cannot be renamed
    partial = partial_folder(target)
    with disk_errors(target):
        partial.mkdir(parents=True, exist_ok=True)
        with _hold_output(partial, target):
            begin_output(partial, target, made_from, writes, restart=restart, reconcile=reconcile)
            try:
                yield partial
                expected = (*writes, MARK_FILE)
                set_aside_foreign_files(
                    partial, target, lambda name: not matches_file_name(name, expected)
                )
                sync_tree(partial)
                require_free_output(target, force=force)
            except BaseException as error:
                if not (made_from and _can_resume(error, partial)):
                    discard_output(partial, target)
                elif not isinstance(error, STOP_ERRORS):
                    note(f"{partial} keeps the finished work: the same command resumes it")
                raise
            replace_output(partial, target)


def require_separate_output(out: Path, *inputs: Path) -> None:
    """Checks that writing `out` cannot destroy an input.

    Raises:
        RecipeProblem: `out`, or its partial folder, is, contains or lies in an input, or contains
            the target of a link in an input.
    """
    for folder, source in product((out, partial_folder(out)), inputs):
        members = source.iterdir() if source.is_dir() else ()
        if _real_path(folder).is_relative_to(_real_path(source)) or any(
            _real_path(path).is_relative_to(_real_path(folder)) for path in (source, *members)
        ):
            raise RecipeProblem(
                f"the output {folder} is, holds or lies in the input {source}",
                next_step="name another output",
            )


def require_free_output(target: Path, *, force: bool) -> None:
    """Finishes an interrupted replacement of `target`, then checks that it may be written.

    Raises:
        OutputExists: The target exists without `force`, is not an earlier output, or the path of
            its backup is occupied.
        OutputProblem: The disk cannot be read.
    """
    with disk_errors(target):
        finish_replacement(target.absolute())
        _require_free(target, force=force)


def partial_folder(target: Path) -> Path:
    """Returns the path of the folder for an unfinished output."""
    return Path(f"{target.absolute()}.partial")


def output_files(folder: Path, *later_files: str) -> tuple[str, ...]:
    """Lists the files of an output for its report.

    Args:
        folder: Output folder, complete except for the later files.
        later_files: Names of the report and of files written after it.
    """
    state = (MARK_FILE, *TEMPORARY_FILES)
    names = {name for name in list_files(folder) if not matches_file_name(name, state)}
    return tuple(sorted({*names, *later_files}))


def _can_resume(error: BaseException, partial: Path) -> bool:
    """Returns True if the next run may reuse the finished work.

    A fault of an input makes the work worthless; any other error is as harmless as a kill.
    """
    if isinstance(error, STOP_ERRORS):
        return True
    is_disk_error = isinstance(error.__cause__, OSError)  # an input was unreadable
    can_resume = not isinstance(error, Problem) or error.can_resume or is_disk_error
    return can_resume and has_finished_work(partial)


def _require_free(target: Path, *, force: bool) -> None:
    if not target.exists() and not target.is_symlink():
        return
    if not force:
        raise OutputExists(
            f"{target} exists", next_step="name another output, or give --force to replace it"
        )
    if not target.is_dir() or (any(target.iterdir()) and not is_camelpress_output(target)):
        raise OutputExists(
            f"{target} is not an earlier output and is not replaced",
            next_step="name another output, or remove it yourself",
        )
    if backup_folder(target).exists():
        raise OutputExists(
            f"{backup_folder(target)} exists, and {target} would be moved there while it is "
            "replaced",
            next_step="remove it, or move it elsewhere",
        )


def _real_path(path: Path) -> Path:
    return Path(os.path.realpath(path))  # tolerates a loop of links, unlike Path.resolve


@contextmanager
def _hold_output(partial: Path, target: Path) -> Iterator[None]:
    """Locks the folder of an unfinished output against other processes."""
    with hold_folder(partial) as is_free:
        if not is_free:
            raise OutputProblem(
                f"{target} is being written by another run",
                next_step="wait for it, or name another output",
            )
        yield
