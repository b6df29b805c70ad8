"""Panics of libraries written in Rust, which reach Python as an exception of no importable class.

Rust also writes a panic to stderr before Python sees it, and warnings to stdout, where a result
belongs; nobody can act on those lines.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

STDOUT, STDERR = 1, 2  # file descriptors that Rust writes to
_LOCK = threading.RLock()  # of the file descriptors


def is_panic(error: BaseException) -> bool:
    """Returns whether an exception is a panic of Rust, which is no `Exception` in Python."""
    return type(error).__name__ == "PanicException" and type(error).__module__ == "pyo3_runtime"


@contextmanager
def drop_panic_messages() -> Iterator[None]:
    """Drops the text of a panic in the block; any other text reaches stderr after the block."""
    with _LOCK, tempfile.TemporaryFile() as file:
        with suppress(OSError, ValueError):  # a full disk or a closed stdout is no fault of ours
            sys.stdout.flush()
        copies = {stream: _redirect_stream(stream, file.fileno()) for stream in (STDOUT, STDERR)}
        panicked = False
        try:
            yield
        except BaseException as error:
            panicked = is_panic(error) or is_panic(error.__cause__ or error)
            raise
        finally:
            with suppress(OSError):  # a full disk or a closed stderr is no fault of the block
                for stream, copy in copies.items():
                    _restore_stream(stream, copy)
                file.seek(0)
                os.write(STDERR, b"" if panicked else file.read())


def _redirect_stream(stream: int, target: int) -> int | None:
    """Points a stream elsewhere, and returns a copy of what it was; None where it is closed."""
    with suppress(OSError):
        copy = os.dup(stream)
        os.dup2(target, stream)
        return copy
    return None


def _restore_stream(stream: int, copy: int | None) -> None:
    if copy is not None:
        os.dup2(copy, stream)
        os.close(copy)
