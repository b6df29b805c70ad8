"""Watches the standard streams, so that a result nobody received never ends like a verdict."""

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
    """A result could not be written to standard output."""


class WatchedStream:
    """A text stream that remembers its first failure, and from then on writes to nowhere.

    Args:
        stream: the stream to watch.
        vital: whether a failure raises. Messages are not vital: a long run goes on without them,
            and its exit code says at the end that some were lost.
    """

    def __init__(self, stream: Any, *, vital: bool) -> None:
        self._stream = stream
        self._vital = vital
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes a text.

        Raises:
            LostOutput: the stream is vital and fails, or failed before.
        """
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Writes texts one after another."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Hands over what is buffered.

        Raises:
            LostOutput: as `write`.
        """
        self._attempt(self._stream.flush)

    @property
    def exit_code(self) -> ExitCode:
        """DONE while nothing is lost, SIGPIPE after the reader left, PROBLEM after other faults."""
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
        if self.error is not None and self._vital:
            raise LostOutput(os.strerror(self.error.errno or errno.EIO)) from self.error

    def _discard(self) -> None:
        """Turns the descriptor to nowhere: the interpreter flushes it again when it ends."""
        with suppress(OSError):  # a stream of a test has no descriptor
            _redirect_to_null(self._stream.fileno(), os.O_WRONLY)


class StandardStreams(NamedTuple):
    """Standard output and standard error."""

    out: WatchedStream
    err: WatchedStream


@contextmanager
def watch_standard_streams() -> Iterator[StandardStreams]:
    """Replaces the standard streams with watched ones while the block runs."""
    before = sys.stdout, sys.stderr
    _reserve_descriptors()
    streams = StandardStreams(
        WatchedStream(_open_stream(sys.stdout, STDOUT), vital=True),
        WatchedStream(_open_stream(sys.stderr, STDERR), vital=False),
    )
    sys.stdout, sys.stderr = cast(TextIO, streams.out), cast(TextIO, streams.err)
    try:
        yield streams
    finally:
        sys.stdout, sys.stderr = before


def _reserve_descriptors() -> None:
    """Occupies closed standard descriptors, or the next file that is opened would get them.

    Closed standard output stays unwritable, since results would vanish there; closed standard
    error means that nobody wants messages.
    """
    for descriptor, flags in ((0, os.O_RDONLY), (STDOUT, os.O_RDONLY), (STDERR, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            _redirect_to_null(descriptor, flags)


def _redirect_to_null(descriptor: int, flags: int) -> None:
    nowhere = os.open(os.devnull, flags)
    if nowhere != descriptor:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def _open_stream(stream: Any, descriptor: int) -> Any:
    """Returns the stream, or one on its descriptor where Python found it closed at the start."""
    if stream is not None:
        return stream
    return open(descriptor, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
