"""Output that has its name only when it is complete, and never at the cost of something else."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

from camelpress.core.errors import Interrupted, OutputExists, OutputProblem, RecipeProblem

MARKS = ("*-report.json", "report.json", "SHA256SUMS")  # one of them is in every output of ours
FINGERPRINT = "fingerprint"
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # some network disks have none
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
        errno.ELOOP,
        errno.EFBIG,
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
        OutputExists: as `require_free`, at the start or at the end.
        OutputProblem: no space, no right to write there, or somebody else is writing there.
    """
    require_free(target, force=force)
    target = target.absolute()  # "." cannot be renamed
    partial = _partial(target)
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with _alone(partial, target):
            try:
                _begin(partial, resumable)
                yield partial
                for path in partial.rglob("*"):
                    _sync(path)
                require_free(target, force=force)
                (partial / FINGERPRINT).unlink(missing_ok=True)
                _take(partial, target)
            except BaseException as error:
                if not (resumable and isinstance(error, STOPS)):
                    shutil.rmtree(partial, ignore_errors=True)
                raise
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
        RecipeProblem: `out`, or the folder it is prepared in, is, holds or lies in an input, or
            holds what a link in an input points to.
    """
    for place, source in product((out, _partial(out)), inputs):
        inside = source.iterdir() if source.is_dir() else ()
        if _resolved(place).is_relative_to(_resolved(source)) or any(
            _resolved(path).is_relative_to(_resolved(place)) for path in (source, *inside)
        ):
            raise RecipeProblem(
                f"the output {place} is, holds or lies in the input {source}",
                next_step="name another output",
            )


def require_free(target: Path, *, force: bool) -> None:
    """See that `target` may be written.

    Raises:
        OutputExists: it is there, and `force` is not given, or it is not an earlier output, or
            something has the name that it gets while it is replaced.
    """
    if not target.exists() and not target.is_symlink():
        return
    if not force:
        raise OutputExists(
            f"{target} exists", next_step="name another output, or give --force to replace it"
        )
    if not target.is_dir() or (any(target.iterdir()) and not is_ours(target)):
        raise OutputExists(
            f"{target} is not an earlier output and is not replaced",
            next_step="name another output, or remove it yourself",
        )
    if _old(target).exists():
        raise OutputExists(
            f"{_old(target)} exists, and {target} would be moved there while it is replaced",
            next_step="remove it, or move it elsewhere",
        )


def _partial(target: Path) -> Path:
    return Path(f"{target.absolute()}.partial")


def _old(target: Path) -> Path:
    return Path(f"{target.absolute()}.old")


def _resolved(path: Path) -> Path:
    return Path(os.path.realpath(path))  # unlike Path.resolve, it does not mind a loop of links


def is_ours(folder: Path) -> bool:
    """Whether a folder is an earlier output."""
    return any(found for mark in MARKS for found in folder.glob(mark))


@contextmanager
def _alone(partial: Path, target: Path) -> Iterator[None]:
    """Hold a folder against other processes."""
    folder = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        try:
            _lock(folder)
            if not os.path.samestat(os.fstat(folder), partial.lstat()):
                raise BlockingIOError  # who held it has renamed or removed it meanwhile
        except (BlockingIOError, FileNotFoundError) as error:
            raise OutputProblem(
                f"{target} is being written by another run",
                next_step="wait for it, or name another output",
            ) from error
        yield
    finally:
        os.close(folder)


def _lock(folder: int) -> None:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


def _begin(partial: Path, fingerprint: str) -> None:
    """Clear a folder unless it was begun with the same fingerprint, and mark it."""
    mark = partial / FINGERPRINT
    if fingerprint and mark.is_file() and mark.read_bytes() == fingerprint.encode():
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
        target.rename(_old(target))
        partial.rename(target)
        shutil.rmtree(_old(target))
    else:
        partial.rename(target)


def _sync(path: Path) -> None:
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())
