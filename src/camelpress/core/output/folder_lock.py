"""A folder held against other processes for as long as it is worked in."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNSUPPORTED_ERRORS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # some network disks have none


@contextmanager
def hold_folder(folder: Path) -> Iterator[bool]:
    """Hold a folder; False where another process holds it, or has just renamed or removed it."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield _lock(opened) and _is_same_folder(folder, opened)
    finally:
        os.close(opened)


def _lock(opened: int) -> bool:
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in UNSUPPORTED_ERRORS:
            raise
    return True


def _is_same_folder(folder: Path, opened: int) -> bool:
    try:
        return os.path.samestat(os.fstat(opened), folder.lstat())
    except FileNotFoundError:
        return False
