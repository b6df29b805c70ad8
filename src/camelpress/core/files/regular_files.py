"""Reads whole files safely: only regular ones, and never more than a bound.

A named pipe or a device can stand where a file is expected; opening the one waits for ever, and
reading the other never ends.
"""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

MAX_PATH_BYTES = 4_096  # bytes of a path on Linux
MAX_NAME_BYTES = 255  # bytes of a name in a path on Linux

# fmt: off
SPECIAL_FILE_KINDS = {  # kinds of files that are not read, by the type bits of their mode
    stat.S_IFIFO:  "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR:  "a device",
    stat.S_IFBLK:  "a device",
}
# fmt: on


def is_path(text: str) -> bool:
    """Returns whether a file system can take a text as a path."""
    try:
        parts = os.fsencode(text).split(b"/")
    except UnicodeEncodeError:  # half a surrogate pair
        return False
    longest = max(map(len, parts))
    return (
        b"\0" not in os.fsencode(text) and len(text) < MAX_PATH_BYTES and longest <= MAX_NAME_BYTES
    )


def open_regular(path: Path) -> BufferedReader:
    """Opens a regular file for reading, without waiting for anything.

    Raises:
        OSError: the file is missing, is not a regular one, or cannot be opened; `strerror` tells
            why.
    """
    try:
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a NUL, or half a surrogate pair
        fault = "its name cannot be the name of a file"
        raise OSError(errno.EINVAL, fault, str(path)) from error
    kind = stat.S_IFMT(os.fstat(number).st_mode)
    if kind == stat.S_IFREG:
        return os.fdopen(number, "rb")
    os.close(number)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    name = SPECIAL_FILE_KINDS.get(kind, "a special file")
    raise OSError(errno.EINVAL, f"it is {name}, not a regular file", str(path))


def read_regular(path: Path, max_bytes: int) -> bytes:
    """Returns the content of a regular file.

    Args:
        path: of the file.
        max_bytes: the largest size that is read.
    Raises:
        OSError: as `open_regular`, or the file is larger.
    """
    with open_regular(path) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"it is larger than the {max_bytes:,} bytes that are read here")
    return content
