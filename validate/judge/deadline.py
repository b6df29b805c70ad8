"""Bounds a whole exchange with a service; a timeout of the client bounds a single read."""

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
    """An exchange took longer than it may."""


class Deadline:
    """A block in which a connection is cut off after so many seconds, whatever it is doing.

    The client tells through its trace extension which connection the request takes.

    Args:
        seconds: from the beginning of the block.
    """

    def __init__(self, seconds: float) -> None:
        self._timer = Timer(seconds, self._cut)
        self._timer.daemon = True
        self._lock = Lock()
        self._socket: socket.socket | None = None
        self._is_over = False

    @property
    def extensions(self) -> dict[str, Any]:
        """Returns the extensions to send with a request."""
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
        """Ends the block.

        Raises:
            DeadlineExceeded: in place of the error that the cut has caused.
        """
        self._timer.cancel()
        if self._is_over and (error is None or isinstance(error, httpx2.RequestError)):
            raise DeadlineExceeded from error

    def _trace(self, name: str, details: Mapping[str, Any]) -> None:
        if name.endswith(CONNECTED):
            with self._lock:
                self._socket = details["return_value"].get_extra_info("socket")
                if self._is_over:
                    self._shut()

    def _cut(self) -> None:
        with self._lock:
            self._is_over = True
            self._shut()

    def _shut(self) -> None:
        with suppress(OSError):  # the connection is gone already
            if self._socket is not None:
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # of TLS, too
