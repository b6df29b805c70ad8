"""Locks a folder against other processes during work in it."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNSUPPORTED_ERRORS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # disks without locks


@contextmanager
def hold_folder(folder: Path) -> Iterator[bool]:
    """Locks a folder inside the block.

    Yields:
        True if the lock is held; False if another process holds it, or has just renamed or removed
        the folder.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield _lock(descriptor) and _is_same_folder(folder, descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in UNSUPPORTED_ERRORS:
            raise
    return True


def _is_same_folder(folder: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), folder.lstat())
    except FileNotFoundError:
        return False
