"""Panics of Rust libraries, raised in Python as an exception of a private class.

Rust also prints a panic to stderr before Python sees it, and warnings to stdout among the results;
a user cannot act on those lines.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

STDOUT, STDERR = 1, 2  # file descriptors written by Rust
_LOCK = threading.RLock()  # guards the file descriptors


def is_panic(error: BaseException) -> bool:
    """Returns True if an exception is a panic of Rust; its class derives from BaseException."""
    return type(error).__name__ == "PanicException" and type(error).__module__ == "pyo3_runtime"


@contextmanager
def drop_panic_messages() -> Iterator[None]:
    """Captures stdout and stderr in the block; prints them to stderr after it, unless it panics."""
    with _LOCK, tempfile.TemporaryFile() as file:
        with suppress(OSError, ValueError):  # ignores a full disk or a closed stdout
            sys.stdout.flush()
        copies = {stream: _redirect_stream(stream, file.fileno()) for stream in (STDOUT, STDERR)}
        panicked = False
        try:
            yield
        except BaseException as error:
            panicked = is_panic(error) or is_panic(error.__cause__ or error)
            raise
        finally:
            with suppress(OSError):  # ignores a full disk or a closed stderr
                for stream, copy in copies.items():
                    _restore_stream(stream, copy)
                file.seek(0)
                os.write(STDERR, b"" if panicked else file.read())


def _redirect_stream(stream: int, target: int) -> int | None:
    """Redirects a descriptor and returns a copy of the original; None if it is closed."""
    with suppress(OSError):
        copy = os.dup(stream)
        os.dup2(target, stream)
        return copy
    return None


def _restore_stream(stream: int, copy: int | None) -> None:
    if copy is not None:
        os.dup2(copy, stream)
        os.close(copy)
