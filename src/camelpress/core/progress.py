"""Progress reports from stages to the current listener.

The command line installs a listener with a terminal bar or plain lines; the default listener of a
library user is silent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar, runtime_checkable

Item = TypeVar("Item")


@runtime_checkable
class ProgressListener(Protocol):
    """Displays progress and notes."""

    def track(self, items: Sequence[Item], label: str) -> Iterator[Item]:
        """Yields the items one by one and shows the finished share."""

    def note(self, text: str) -> None:
        """Shows one line about a decision."""


class SilentListener:
    """Discards all progress; the default in a library."""

    def track(self, items: Sequence[Item], label: str) -> Iterator[Item]:
        """Yields the items."""
        yield from items

    def note(self, text: str) -> None:
        """Discards the line."""


_listener: ContextVar[ProgressListener] = ContextVar("listener", default=SilentListener())  # noqa: B039 - stateless


def track(items: Sequence[Item], label: str) -> Iterator[Item]:
    """Yields the items one by one and reports the finished share to the current listener."""
    return _listener.get().track(items, label)


def note(text: str) -> None:
    """Reports one line about a decision to the current listener."""
    _listener.get().note(text)


@contextmanager
def use_listener(listener: ProgressListener) -> Iterator[None]:
    """Sends all progress inside the block to `listener`."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
