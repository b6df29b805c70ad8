"""A stop that waits for a good moment: a signal is noted, and the work asks when it can end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from camelpress.core.errors import Interrupted
from camelpress.core.progress import note


class Stop:
    """Whether somebody asked for the end."""

    def __init__(self) -> None:
        self.asked = False

    def ask(self, _number: int, _frame: FrameType | None) -> None:
        """A signal handler; the second signal does not wait.

        Raises:
            Interrupted: it is the second.
        """
        if self.asked:
            raise Interrupted("stopped before the end", next_step="run the same command again")
        self.asked = True
        note("stopping when this block is finished; once more stops at once")


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Turn SIGTERM and Ctrl-C into a question that the block asks."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may handle signals
        return
    before = {number: signal.signal(number, stop.ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
