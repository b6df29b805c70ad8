"""Panics of libraries written in Rust, which reach Python as an exception of no importable class.

Rust also writes a panic to stderr before Python sees it; nobody can act on those lines.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

STDERR = 2  # the file descriptor that Rust writes to
_LOCK = threading.RLock()  # of the file descriptor


def is_panic(error: BaseException) -> bool:
    """Returns whether an exception is a panic of Rust, which is no `Exception` in Python."""
    return type(error).__name__ == "PanicException" and type(error).__module__ == "pyo3_runtime"


@contextmanager
def without_panic_messages() -> Iterator[None]:
    """Drops the text of a panic in the block; any other text reaches stderr after the block."""
    with _LOCK, tempfile.TemporaryFile() as file:
        stderr = _redirected(file.fileno())
        panicked = False
        try:
            yield
        except BaseException as error:
            panicked = is_panic(error) or is_panic(error.__cause__ or error)
            raise
        finally:
            with suppress(OSError):  # a full disk or a closed stderr is no fault of the block
                _restore(stderr)
                file.seek(0)
                os.write(STDERR, b"" if panicked else file.read())


def _redirected(target: int) -> int | None:
    """Points stderr elsewhere, and returns a copy of what it was; None where it is closed."""
    with suppress(OSError):
        stderr = os.dup(STDERR)
        os.dup2(target, STDERR)
        return stderr
    return None


def _restore(stderr: int | None) -> None:
    if stderr is not None:
        os.dup2(stderr, STDERR)
        os.close(stderr)
