"""How a stage says how far it is, without knowing who listens.

The command line installs a terminal bar or plain lines; a library user gets silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar, runtime_checkable

Item = TypeVar("Item")


@runtime_checkable
class ProgressListener(Protocol):
    """Whoever shows progress."""

    def track(self, items: Sequence[Item], label: str) -> Iterator[Item]:
        """Yield the items one by one, showing the share that is done."""

    def note(self, text: str) -> None:
        """Say one line about what was decided."""


class SilentListener:
    """The listener of a library user."""

    def track(self, items: Sequence[Item], label: str) -> Iterator[Item]:
        """Yield the items."""
        yield from items

    def note(self, text: str) -> None:
        """Say nothing."""


_listener: ContextVar[ProgressListener] = ContextVar("listener", default=SilentListener())  # noqa: B039 - stateless


def track(items: Sequence[Item], label: str) -> Iterator[Item]:
    """Yield the items one by one to the work, and the share done to whoever listens."""
    return _listener.get().track(items, label)


def note(text: str) -> None:
    """Say one line about what was decided."""
    _listener.get().note(text)


@contextmanager
def use_listener(listener: ProgressListener) -> Iterator[None]:
    """Let `listener` hear of all progress inside the block."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
