"""Panics of libraries written in Rust, which reach Python as an exception of no importable class.

Rust also writes a panic to stderr before Python sees it; nobody can act on those lines.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STDERR = 2  # the file descriptor that Rust writes to
_LOCK = threading.RLock()  # of the file descriptor


def is_panic(error: BaseException) -> bool:
    """Returns whether an exception is a panic of Rust, which is no `Exception` in Python."""
    return type(error).__name__ == "PanicException" and type(error).__module__ == "pyo3_runtime"


@contextmanager
def without_panic_messages() -> Iterator[None]:
    """Drops the text of a panic in the block; any other text reaches stderr after the block."""
    with _LOCK, tempfile.TemporaryFile() as file:
        sys.stderr.flush()
        stderr = os.dup(STDERR)
        os.dup2(file.fileno(), STDERR)
        panicked = False
        try:
            yield
        except BaseException as error:
            panicked = is_panic(error) or is_panic(error.__cause__ or error)
            raise
        finally:
            sys.stderr.flush()
            os.dup2(stderr, STDERR)
            os.close(stderr)
            file.seek(0)
            if not panicked:
                os.write(STDERR, file.read())
