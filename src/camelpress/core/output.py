"""Output that has its name only when it is complete, and never at the cost of something else."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from camelpress.core.errors import Interrupted, OutputExists, OutputProblem, RecipeProblem

MARKS = ("*-report.json", "report.json", "SHA256SUMS")  # one of them is in every output of ours
FINGERPRINT = "fingerprint"
STOPS = (Interrupted, KeyboardInterrupt)
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
def staged(target: Path, *, force: bool = False, resumable: str = "") -> Iterator[Path]:
    """Yield a folder beside `target` that takes its name only if the block ends well.

    Args:
        target: where the output will stand.
        force: replace an earlier output.
        resumable: what the output is made from, as a fingerprint. A block that is stopped, or
            whose process is killed, leaves the folder to the next one with the same fingerprint,
            which finds in it whatever is there; without a fingerprint nothing is left.
    Raises:
        OutputExists: `target` is there, or there at the end, and `force` is not given; or it is
            not an earlier output of ours, which nothing replaces.
        OutputProblem: no space, no right to write there, or somebody else is writing there.
    """
    require_free(target, force=force)
    partial = target.with_name(target.name + ".partial")
    keep = False
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with _alone(partial, target):
            try:
                _begin(partial, resumable)
                yield partial
                (partial / FINGERPRINT).unlink(missing_ok=True)
                for path in partial.rglob("*"):
                    _sync(path)
                require_free(target, force=force)
                _take(partial, target)
            except BaseException as error:
                keep = bool(resumable) and isinstance(error, STOPS)
                raise
            finally:
                if not keep:
                    shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise OutputProblem(
            f"{target} cannot be written: {os.strerror(error.errno or 0)}"
            + (f" ({error.filename})" if error.filename else ""),
            next_step="free some space, or name a place that can be written",
        ) from error


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


@contextmanager
def _alone(partial: Path, target: Path) -> Iterator[None]:
    """Hold a folder against other processes."""
    folder = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(folder)
        raise OutputProblem(
            f"{target} is being written by another run",
            next_step="wait for it, or name another output",
        ) from error
    try:
        yield
    finally:
        os.close(folder)


def _begin(partial: Path, fingerprint: str) -> None:
    """Clear a folder unless it was begun with the same fingerprint, and mark it."""
    mark = partial / FINGERPRINT
    if fingerprint and mark.is_file() and mark.read_text(encoding="utf-8") == fingerprint:
        return
    for path in partial.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    if fingerprint:
        mark.write_text(fingerprint, encoding="utf-8")


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
