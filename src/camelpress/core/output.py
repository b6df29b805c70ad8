"""Output that has its name only when it is complete, and never at the cost of something else."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from camelpress.core.errors import OutputExists, OutputProblem, RecipeProblem

MARKS = ("*-report.json", "report.json", "SHA256SUMS")  # one of them is in every output of ours
DISK_ERRORS = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOTDIR,
        errno.EEXIST,
        errno.ENAMETOOLONG,
    }
)


@contextmanager
def staged(target: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a folder beside `target` that takes its name only if the block ends well.

    Raises:
        OutputExists: `target` is there, or there at the end, and `force` is not given; or it is
            not an earlier output of ours, which nothing replaces.
        OutputProblem: no space, or no right to write there.
    """
    require_free(target, force=force)
    partial = target.with_name(target.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        for path in partial.rglob("*"):
            _sync(path)
        require_free(target, force=force)
        _take(partial, target)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise OutputProblem(
            f"{target} cannot be written: {os.strerror(error.errno or 0)}"
            + (f" ({error.filename})" if error.filename else ""),
            next_step="free some space, or name a place that can be written",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def keep_apart(out: Path, *inputs: Path) -> None:
    """See that writing `out` cannot destroy what is read.

    Raises:
        RecipeProblem: `out` is, holds or lies in an input.
    """
    place = out.resolve()
    for source in inputs:
        there = source.resolve()
        if there.is_relative_to(place) or place.is_relative_to(there):
            raise RecipeProblem(
                f"the output {out} is, holds or lies in the input {source}",
                next_step="name another output",
            )


def require_free(target: Path, *, force: bool) -> None:
    """See that `target` may be written.

    Raises:
        OutputExists: it is there, and `force` is not given or it is not an earlier output.
    """
    if not target.exists():
        return
    if not force:
        raise OutputExists(
            f"{target} exists", next_step="name another output, or give --force to replace it"
        )
    if not target.is_dir() or (any(target.iterdir()) and not _is_ours(target)):
        raise OutputExists(
            f"{target} is not an earlier output and is not replaced",
            next_step="name another output, or remove it yourself",
        )


def _is_ours(folder: Path) -> bool:
    return any(found for mark in MARKS for found in folder.glob(mark))


def _take(partial: Path, target: Path) -> None:
    if target.is_symlink():
        target.unlink()
    if target.is_dir():
        old = target.with_name(target.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        partial.rename(target)
        shutil.rmtree(old)
    else:
        partial.rename(target)


def _sync(path: Path) -> None:
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())
