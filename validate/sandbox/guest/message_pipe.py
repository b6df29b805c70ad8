"""Lines of JSON in and out of a sandboxed process, kept from the code that runs there.

The first line in is the job, the first line out says that the process is ready. Standard input,
output and error are then nothing to read and nowhere to write, so what a program prints is not
mistaken for what it answers.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any

READY_MESSAGE = "ready"
MAX_ERROR_CHARACTERS = 200  # characters of an exception's text


class MessagePipe:
    """The lines to and from the other side; made once, before anything else is run."""

    def __init__(self) -> None:
        self._incoming = os.fdopen(os.dup(0), "rb")
        self._outgoing = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 0)  # /dev/null
        os.dup2(2, 1)
        self.job: Mapping[str, Any] = self.receive()

    def receive(self) -> Any:
        """The next message.

        Raises:
            EOFError: there is none.
        """
        line = self._incoming.readline()
        if not line:
            raise EOFError("nobody asks any more")
        return json.loads(line)

    def send(self, message: Any) -> None:
        """Write one message."""
        self._outgoing.write(json.dumps(message).encode() + b"\n")
        self._outgoing.flush()

    def report_uncaught(self, key: str) -> None:
        """Send what is raised and not caught, under this key; the process then ends."""

        def tell(
            kind: type[BaseException], error: BaseException, _at: TracebackType | None
        ) -> None:
            self.send({key: f"{kind.__name__}: {error}".rstrip(": ")[:MAX_ERROR_CHARACTERS]})

        sys.excepthook = tell
