"""Deferred stops: a signal sets a flag, and the work checks it at a safe point."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from camelpress.core.errors import Interruption
from camelpress.core.progress import note


class StopRequest:
    """A flag set by the first stop signal."""

    def __init__(self) -> None:
        self.is_requested = False

    def handle_signal(self, _number: int, _frame: FrameType | None) -> None:
        """Sets the flag at the first signal and stops at the second.

        Raises:
            Interruption: This is the second signal.
        """
        if self.is_requested:
            raise Interruption("stopped before the end", next_step="run the same command again")
        self.is_requested = True
        note("stopping when this block is finished; a second signal stops at once")


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Turns SIGTERM and Ctrl-C inside the block into a `StopRequest`."""
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may handle signals
        return
    handlers = {
        number: signal.signal(number, stop.handle_signal)
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
