"""Reads whole regular files of bounded size.

A named pipe or a device in place of a file is refused: opening a pipe can block forever, and
reading a device may never end.
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
SPECIAL_FILE_KINDS = {  # type bits of the file mode: name of the refused kind
    stat.S_IFIFO:  "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR:  "a device",
    stat.S_IFBLK:  "a device",
}
# fmt: on


def is_path(text: str) -> bool:
    """Returns True if a text is valid as a path."""
    try:
        parts = os.fsencode(text).split(b"/")
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    name_bytes = max(map(len, parts))
    is_short = len(text) < MAX_PATH_BYTES and name_bytes <= MAX_NAME_BYTES
    return b"\0" not in os.fsencode(text) and is_short


def open_regular(path: Path) -> BufferedReader:
    """Opens a regular file for reading without blocking.

    Raises:
        OSError: The file is missing, not regular, or cannot be opened; `strerror` has the reason.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a NUL, or half of a surrogate pair
        fault = "its name cannot be the name of a file"
        raise OSError(errno.EINVAL, fault, str(path)) from error
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind == stat.S_IFREG:
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    name = SPECIAL_FILE_KINDS.get(kind, "a special file")
    raise OSError(errno.EINVAL, f"it is {name}, not a regular file", str(path))


def read_regular(path: Path, max_bytes: int) -> bytes:
    """Reads the content of a regular file.

    Args:
        path: File.
        max_bytes: Largest accepted size in bytes.
    Raises:
        OSError: The file is larger, or `open_regular` fails.
    """
    with open_regular(path) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"it is larger than the {max_bytes:,} bytes that are read here")
    return content
