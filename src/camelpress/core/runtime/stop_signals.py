"""A stop that waits for a good moment: a signal is noted, and the work asks when it can end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from camelpress.core.errors import Interruption
from camelpress.core.progress import note


class StopRequest:
    """Whether somebody asked for the end."""

    def __init__(self) -> None:
        self.is_requested = False

    def handle_signal(self, _number: int, _frame: FrameType | None) -> None:
        """A signal handler; the second signal does not wait.

        Raises:
            Interrupted: it is the second.
        """
        if self.is_requested:
            raise Interruption("stopped before the end", next_step="run the same command again")
        self.is_requested = True
        note("stopping when this block is finished; once more stops at once")


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM and Ctrl-C into a question that the block asks."""
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may handle signals
        return
    before = {
        number: signal.signal(number, stop.handle_signal)
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
