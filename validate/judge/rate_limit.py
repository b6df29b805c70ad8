"""When the next question may be put: so many a minute, and not before the service wants one."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from threading import Event, Lock

FIRST_WAIT, MAX_BACKOFF = 1.0, 60.0  # s


class RateLimiter:
    """Turns for all threads that ask the same service.

    Args:
        per_minute: turns.
        wait: for an event, so many seconds at most; tells whether it came.
        clock: seconds, from anywhere.
    """

    def __init__(
        self,
        per_minute: float,
        wait: Callable[[Event, float], bool] = Event.wait,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._interval = 60 / per_minute
        self._wait, self._clock = wait, clock
        self._lock = Lock()
        self._next = clock()

    def acquire(self, over: Event) -> bool:
        """Wait for a turn; False if all is over before it comes."""
        with self._lock:
            start = max(self._next, self._clock())
            self._next = start + self._interval
            left = start - self._clock()
        return not self._wait(over, max(0.0, left))

    def pause(self, seconds: float) -> None:
        """Let no turn begin before so many seconds have passed."""
        with self._lock:
            self._next = max(self._next, self._clock() + seconds)


def backoff_seconds(failures: int) -> float:
    """How long to wait after so many failures in a row, s: twice as long each time, and never the
    same for all who wait."""
    return min(MAX_BACKOFF, FIRST_WAIT * 2 ** (failures - 1)) * random.uniform(0.5, 1)
