"""Bounds the duration of a whole HTTP exchange; a client timeout bounds a single read."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import suppress
from threading import Lock, Timer
from types import TracebackType
from typing import Any

import httpx2

CONNECTED = ("connect_tcp.complete", "connect_unix_socket.complete", "start_tls.complete")


class DeadlineExceeded(Exception):
    """An exchange exceeded its deadline."""


class Deadline:
    """A context that shuts down the connection of a request after a timeout.

    The trace extension of the client reports the connection of the request.

    Args:
        seconds: timeout from the beginning of the block, s.
    """

    def __init__(self, seconds: float) -> None:
        self._timer = Timer(seconds, self._expire)
        self._timer.daemon = True
        self._lock = Lock()
        self._socket: socket.socket | None = None
        self._is_over = False

    @property
    def extensions(self) -> dict[str, Any]:
        """Returns the request extensions for the client."""
        return {"trace": self._trace}

    def __enter__(self) -> Deadline:
        self._timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stops the timer.

        Raises:
            DeadlineExceeded: Replaces the connection error after a shutdown.
        """
        self._timer.cancel()
        if self._is_over and (error is None or isinstance(error, httpx2.RequestError)):
            raise DeadlineExceeded from error

    def _trace(self, name: str, details: Mapping[str, Any]) -> None:
        if name.endswith(CONNECTED):
            with self._lock:
                self._socket = details["return_value"].get_extra_info("socket")
                if self._is_over:
                    self._shut_down()

    def _expire(self) -> None:
        with self._lock:
            self._is_over = True
            self._shut_down()

    def _shut_down(self) -> None:
        with suppress(OSError):  # the connection is closed already
            if self._socket is not None:
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # also under TLS
