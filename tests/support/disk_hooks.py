"""A disk that kills the process, or fails, at one chosen operation that changes it.

Counted are the operations below one folder: opening a file for writing, each write, fsync, rename,
link, unlink, truncation, and making or removing a folder. They are Python's own; what a library
writes by itself is not seen. What a connection sends and receives counts, too: there a fault of
the disk is a connection that breaks.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KILL = 0  # in place of an error number
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
PATHS = ("rename", "replace", "mkdir", "unlink", "remove", "rmdir", "link", "symlink", "truncate")
DESCRIPTORS = ("pwrite", "fsync", "ftruncate")
SOCKETS = ("send", "sendall", "recv", "recv_into")
SPACELESS = (
    "unlink",
    "remove",
    "rmdir",
    "rename",
    "replace",
    "fsync",
    *SOCKETS,
)  # work on a full disk


@dataclass
class Disk:
    """The operations below a folder.

    Args:
        folder: the place that is watched.
        at: number of the operation that fails; none does where it is negative.
        fault: KILL, or an error number. A disk without space has none from then on.
    """

    folder: Path
    at: int = -1
    fault: int = KILL
    operations: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)  # of each operation

    def install(self) -> None:
        """Watch from here on, for the rest of the process."""
        for name in PATHS:
            setattr(os, name, self._with_path(name, getattr(os, name)))
        for name in DESCRIPTORS:
            setattr(os, name, self._with_descriptor(name, getattr(os, name)))
        for name in SOCKETS:
            setattr(socket.socket, name, self._with_socket(name, getattr(socket.socket, name)))
        self._install_sendfile(os.sendfile)
        self._install_os_open(os.open)
        self._install_open(builtins.open)

    def touch(self, name: str, path: str, half: Callable[[], object] | None = None) -> None:
        """Count an operation on a path, and let it fail if it is the chosen one."""
        if f"{path}/".startswith(f"{self.folder}/"):
            self._count(name, path, half)

    def _count(self, name: str, path: str, half: Callable[[], object] | None) -> None:
        number = len(self.operations)
        self.operations.append(name)
        self.paths.append(path)
        full = self.fault == errno.ENOSPC and 0 <= self.at < number and name not in SPACELESS
        if number != self.at and not full:
            return
        if half is not None:
            half()
        if self.fault == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        if name in SOCKETS:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        where = [] if name in ("write", "pwrite", "fsync", "truncate", "sendfile") else [path]
        raise OSError(self.fault, os.strerror(self.fault), *where)

    def _with_path(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(path: Any, *arguments: Any, **keywords: Any) -> Any:
            self.touch(name, _full(path, keywords.get("dir_fd") or keywords.get("src_dir_fd")))
            return original(path, *arguments, **keywords)

        return wrapped

    def _with_descriptor(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(descriptor: int, *arguments: Any) -> Any:
            half = None
            if name == "pwrite":
                content, offset = arguments
                half = lambda: original(descriptor, content[: len(content) // 2], offset)  # noqa: E731
            self.touch(name, _of(descriptor), half)
            return original(descriptor, *arguments)

        return wrapped

    def _with_socket(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(connection: socket.socket, content: Any, *arguments: Any) -> Any:
            def half() -> None:
                if name in ("send", "sendall"):
                    original(connection, content[: len(content) // 2])
                connection.shutdown(socket.SHUT_RDWR)

            if connection.family == socket.AF_INET:
                self._count(name, "", half)
            return original(connection, content, *arguments)

        return wrapped

    def _install_sendfile(self, original: Callable[..., Any]) -> None:
        def wrapped(target: int, *arguments: Any) -> Any:
            self.touch("sendfile", _of(target))
            return original(target, *arguments)

        setattr(os, "sendfile", wrapped)  # noqa: B010 - mypy knows its type

    def _install_os_open(self, original: Callable[..., int]) -> None:
        def wrapped(path: Any, flags: int, *arguments: Any, **keywords: Any) -> int:
            if flags & WRITES:
                self.touch("open", _full(path, keywords.get("dir_fd")))
            return original(path, flags, *arguments, **keywords)

        setattr(os, "open", wrapped)  # noqa: B010

    def _install_open(self, original: Callable[..., Any]) -> None:
        def wrapped(file: Any, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
            is_read = isinstance(file, int) or not set(mode) & set("wax+")
            if is_read or "opener" in keywords:  # an opener of `tempfile` makes a nameless file
                return original(file, mode, *arguments, **keywords)
            path = _full(file, None)
            self.touch("open", path)
            return _opened(self, path, mode, *arguments, **keywords)

        builtins.open = wrapped
        setattr(io, "open", wrapped)  # noqa: B010


class Raw(io.FileIO):
    """An open file whose writes are counted."""

    disk: Disk
    path: str

    def write(self, content: Any) -> int:
        part = memoryview(content)
        self.disk.touch("write", self.path, lambda: super(Raw, self).write(part[: len(part) // 2]))
        return super().write(content)

    def truncate(self, size: int | None = None) -> int:
        self.disk.touch("truncate", self.path)
        return super().truncate(size)


def _opened(
    disk: Disk,
    path: str,
    mode: str,
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
) -> Any:
    raw = Raw(path, mode.replace("b", "").replace("t", ""))
    raw.disk, raw.path = disk, path
    if buffering == 0:
        return raw
    binary = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
    return binary if "b" in mode else io.TextIOWrapper(binary, encoding, errors, newline)


def _full(path: Any, folder: int | None) -> str:
    name = os.fspath(path)
    text = name.decode() if isinstance(name, bytes) else name
    return str(Path(text if folder is None else f"{_of(folder)}/{text}").absolute())


def _of(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())
