"""Output that has its name only when it is complete, and never at the cost of something else."""

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
    """The options of `staged`."""

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
    """Yield a folder beside `target` that takes its name only if the block ends well.

    Args:
        target: where the output will stand.
        force: replace an earlier output.
        made_from: name to value of everything that decides the output's bytes. A block that is
            stopped, killed or fails for any reason but its inputs leaves the folder to the next
            one that is made from the same, which finds its state in it; without values nothing
            is left.
        restart: begin again where an unfinished output was made from something else.
        writes: names and patterns of the files that the block writes. Any other file in the
            folder is set aside before the output gets its name.
        reconcile: of `begin`, for inputs that were touched since the unfinished output was begun.
    Raises:
        OutputExists: as `require_free`, at the start or at the end; or the folder beside `target`
            holds something else than an unfinished output.
        OutputProblem: no space, no right to write there, somebody else is writing there, or the
            unfinished output there was made from something else.
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
                    note(f"{partial} keeps what is finished: the same command goes on with it")
                raise
            replace_output(partial, target)


def require_separate_output(out: Path, *inputs: Path) -> None:
    """See that writing `out` cannot destroy what is read.

    Raises:
        RecipeProblem: `out`, or the folder it is prepared in, is, holds or lies in an input, or
            holds what a link in an input points to.
    """
    for place, source in product((out, partial_folder(out)), inputs):
        inside = source.iterdir() if source.is_dir() else ()
        if _real_path(place).is_relative_to(_real_path(source)) or any(
            _real_path(path).is_relative_to(_real_path(place)) for path in (source, *inside)
        ):
            raise RecipeProblem(
                f"the output {place} is, holds or lies in the input {source}",
                next_step="name another output",
            )


def require_free_output(target: Path, *, force: bool) -> None:
    """See that `target` may be written; first end a replacement there that a kill cut short.

    Raises:
        OutputExists: it is there, and `force` is not given, or it is not an earlier output, or
            something has the name that it gets while it is replaced.
        OutputProblem: the disk does not let anybody look.
    """
    with disk_errors(target):
        finish_replacement(target.absolute())
        _require_free(target, force=force)


def partial_folder(target: Path) -> Path:
    """The folder in which an output is prepared."""
    return Path(f"{target.absolute()}.partial")


def output_files(folder: Path, *others: str) -> tuple[str, ...]:
    """The files that an output consists of, for its report.

    Args:
        folder: of the output, in which everything else is written.
        others: the report, and files that are written after it.
    """
    state = (MARK_FILE, *TEMPORARY_FILES)
    names = {name for name in list_files(folder) if not matches_file_name(name, state)}
    return tuple(sorted({*names, *others}))


def _can_resume(error: BaseException, partial: Path) -> bool:
    """Returns whether the next run may go on with what is finished.

    Only what is wrong with an input makes it worthless; anything else ends a run as a kill does.
    """
    if isinstance(error, STOP_ERRORS):
        return True
    is_of_disk = isinstance(error.__cause__, OSError)  # which did not let an input be read
    keeps_work = not isinstance(error, Problem) or error.can_resume or is_of_disk
    return keeps_work and has_finished_work(partial)


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
    return Path(os.path.realpath(path))  # unlike Path.resolve, it does not mind a loop of links


@contextmanager
def _hold_output(partial: Path, target: Path) -> Iterator[None]:
    """Hold the folder of an output against other processes."""
    with hold_folder(partial) as is_free:
        if not is_free:
            raise OutputProblem(
                f"{target} is being written by another run",
                next_step="wait for it, or name another output",
            )
        yield
