"""Limits the request rate to a service and pauses it on demand."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from threading import Event, Lock

FIRST_WAIT, MAX_BACKOFF = 1.0, 60.0  # bounds of the backoff, s


class RateLimiter:
    """A rate limiter shared by all threads with requests to one service.

    Args:
        per_minute: maximum number of requests per minute.
        wait: waits for an event with a timeout in seconds; returns True if the event was set.
        clock: monotonic clock, s.
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

    def acquire(self, stop: Event) -> bool:
        """Waits for the next free slot; returns False if `stop` is set first."""
        with self._lock:
            start = max(self._next, self._clock())
            self._next = start + self._interval
            delay = start - self._clock()
        return not self._wait(stop, max(0.0, delay))

    def pause(self, seconds: float) -> None:
        """Blocks all new requests for the given time, s."""
        with self._lock:
            self._next = max(self._next, self._clock() + seconds)


def backoff_seconds(failures: int) -> float:
    """Returns the wait after consecutive failures, s: exponential backoff with random jitter."""
    return min(MAX_BACKOFF, FIRST_WAIT * 2 ** (failures - 1)) * random.uniform(0.5, 1)
