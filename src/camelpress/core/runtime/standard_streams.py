"""Watched standard streams, so a run with a lost result never exits with a verdict."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, TextIO, cast

from camelpress.core.exit_codes import ExitCode

STDOUT, STDERR = 1, 2  # file descriptors


class LostOutput(Exception):
    """Standard output failed and a result is lost."""


class WatchedStream:
    """A text stream with a record of its first failure; later writes are discarded.

    Args:
        stream: Stream to watch.
        is_vital: True to raise on a failure. Messages are not vital: a long run continues without
            them, and its exit code shows the loss at the end.
    """

    def __init__(self, stream: Any, *, is_vital: bool) -> None:
        self._stream = stream
        self._is_vital = is_vital
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes a text.

        Raises:
            LostOutput: The stream is vital and fails, or failed before.
        """
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Writes texts one after another."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flushes the buffer.

        Raises:
            LostOutput: The stream is vital and fails, or failed before.
        """
        self._attempt(self._stream.flush)

    @property
    def exit_code(self) -> ExitCode:
        """Exit code: DONE without a loss, SIGPIPE after a closed pipe, else PROBLEM."""
        if self.error is None:
            return ExitCode.DONE
        return ExitCode.SIGPIPE if self.error.errno == errno.EPIPE else ExitCode.PROBLEM

    def _attempt(self, work: Callable[[], object]) -> None:
        if self.error is None:
            try:
                work()
            except OSError as error:
                self.error = error
                self._discard()
        if self.error is not None and self._is_vital:
            raise LostOutput(os.strerror(self.error.errno or errno.EIO)) from self.error

    def _discard(self) -> None:
        """Redirects the descriptor to /dev/null, since the interpreter flushes it at its end."""
        with suppress(OSError):  # a stream in a test has no descriptor
            _redirect_to_null(self._stream.fileno(), os.O_WRONLY)


class StandardStreams(NamedTuple):
    """Standard output and standard error."""

    out: WatchedStream
    err: WatchedStream


@contextmanager
def watch_standard_streams() -> Iterator[StandardStreams]:
    """Replaces the standard streams with watched ones inside the block."""
    originals = sys.stdout, sys.stderr
    _reserve_descriptors()
    streams = StandardStreams(
        WatchedStream(_open_stream(sys.stdout, STDOUT), is_vital=True),
        WatchedStream(_open_stream(sys.stderr, STDERR), is_vital=False),
    )
    sys.stdout, sys.stderr = cast(TextIO, streams.out), cast(TextIO, streams.err)
    try:
        yield streams
    finally:
        sys.stdout, sys.stderr = originals


def _reserve_descriptors() -> None:
    """Occupies closed standard descriptors, since the next opened file would get their numbers.

    A closed standard output stays unwritable, so that a result is not lost silently; a closed
    standard error discards messages.
    """
    for descriptor, flags in ((0, os.O_RDONLY), (STDOUT, os.O_RDONLY), (STDERR, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            _redirect_to_null(descriptor, flags)


def _redirect_to_null(descriptor: int, flags: int) -> None:
    null = os.open(os.devnull, flags)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)


def _open_stream(stream: Any, descriptor: int) -> Any:
    """Returns the stream, or opens one on its descriptor if it was closed at the start."""
    if stream is not None:
        return stream
    return open(descriptor, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
