"""Exchanges lines of JSON with a sandboxed process, out of reach of the code it runs.

The first input line is the job; the first output line reports readiness. Standard input, output
and error are then redirected to /dev/null, so printed text never mixes with answers.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any

READY_MESSAGE = "ready"
MAX_ERROR_CHARACTERS = 200  # characters of an exception message


class MessagePipe:
    """The message channel to the parent process; created once, before any other code runs."""

    def __init__(self) -> None:
        self._incoming = os.fdopen(os.dup(0), "rb")
        self._outgoing = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 0)  # /dev/null
        os.dup2(2, 1)
        self.job: Mapping[str, Any] = self.receive()

    def receive(self) -> Any:
        """Reads the next message.

        Raises:
            EOFError: The parent process closed the pipe.
        """
        line = self._incoming.readline()
        if not line:
            raise EOFError("the parent process closed the pipe")
        return json.loads(line)

    def send(self, message: Any) -> None:
        """Writes one message."""
        self._outgoing.write(json.dumps(message).encode() + b"\n")
        self._outgoing.flush()

    def report_uncaught(self, key: str) -> None:
        """Sends an uncaught exception under this key before the process ends."""

        def send_exception(
            exception_type: type[BaseException],
            error: BaseException,
            _traceback: TracebackType | None,
        ) -> None:
            message = f"{exception_type.__name__}: {error}".rstrip(": ")
            self.send({key: message[:MAX_ERROR_CHARACTERS]})

        sys.excepthook = send_exception
