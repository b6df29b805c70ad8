"""Durable writes with fsync, and disk errors translated into one line."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from camelpress.core.errors import OutputProblem

# Errors of a disk with a chance to recover within minutes, such as a lost network disk.
TRANSIENT_ERRORS = frozenset({errno.EIO, errno.ENODEV, errno.ENXIO, errno.EREMOTEIO, errno.ESTALE})
DISK_ERRORS = TRANSIENT_ERRORS | frozenset(
    {
        errno.EACCES,
        errno.EBUSY,
        errno.EDQUOT,
        errno.EEXIST,
        errno.EFBIG,
        errno.EISDIR,
        errno.ELOOP,
        errno.EMFILE,
        errno.EMLINK,
        errno.ENAMETOOLONG,
        errno.ENFILE,
        errno.ENOENT,
        errno.ENOSPC,
        errno.ENOTDIR,
        errno.ENOTEMPTY,
        errno.EPERM,
        errno.EROFS,
    }
)


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Translates a disk error inside the block into a problem with the output `target`.

    Raises:
        OutputProblem: The disk is full, read-only, broken or gone, or a path is in the way.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise _translate_disk_error(target, error) from error


def write_synced(path: Path, text: str) -> None:
    """Replaces a small file atomically: a kill or a power cut leaves the old or the new content."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_folder(path.parent)


def sync_tree(folder: Path) -> None:
    """Flushes all files and directory entries below a folder to the disk."""
    for path in folder.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            sync_folder(path)
        elif path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Flushes the directory entries of a folder to the disk, if the file system supports it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _translate_disk_error(target: Path, error: OSError) -> OutputProblem:
    reason, path = os.strerror(error.errno or 0), error.filename
    if isinstance(path, str) and not _is_output_path(Path(path), target):
        return OutputProblem(
            f"{path} cannot be read or written: {reason}",
            next_step="check that its disk works and that you may use it, then run the same "
            "command again",
        )
    is_transient = error.errno in TRANSIENT_ERRORS
    return OutputProblem(
        f"{target} cannot be written: {reason}" + (f" ({path})" if path else ""),
        next_step="check that its disk works, then run the same command again"
        if is_transient
        else "free some space, or name a place that can be written",
    )


def _is_output_path(path: Path, target: Path) -> bool:
    """Returns True for a path in the output, in a neighbour `OUT.*`, or above the output."""
    output = str(target.absolute())
    return str(path.absolute()).startswith(output) or output.startswith(str(path.absolute()))
