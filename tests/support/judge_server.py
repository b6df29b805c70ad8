"""A service on this machine that speaks the OpenAI protocol as far as a judge is asked, faults too.

It prefers the longer output, and between equally long ones the first. What it does wrong, request
by request, stands in `faults`.

    PYTHONPATH=src:tests/support python tests/support/judge_server.py    # until Ctrl-C

Source: the chat completions part of OpenAI's API reference: request, response, error, Retry-After.
"""

from __future__ import annotations

import json
import re
import signal
import socket
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SHOWN = re.compile(
    r"<output \(a\) (?P<tag>\w+)>\n(.*)\n</output \(a\) (?P=tag)>\s*"
    r"<output \(b\) (?P=tag)>\n(.*)\n</output \(b\) (?P=tag)>",
    re.DOTALL,
)

DRIP = 0.05  # seconds between two bytes of a slow answer


@dataclass(frozen=True)
class Asked:
    """One request."""

    path: str
    key: str | None
    body: dict[str, Any]

    @property
    def outputs(self) -> tuple[str, str]:
        """The two outputs in the order in which they are shown."""
        found = SHOWN.search(self.body["messages"][-1]["content"])
        assert found is not None
        return found[2], found[3]


def longer(first: str, second: str) -> str:
    """What the judge says."""
    return "Output (a)" if len(first) >= len(second) else "Output (b)"


@dataclass
class Service:
    """What it says, what it shall do wrong, and what it was asked."""

    says: Callable[[str, str], str | None] = longer
    faults: deque[str] = field(default_factory=deque)  # one for each request, until there are none
    after: str = "2"  # the Retry-After that comes with a 429
    always: str = ""  # a fault of all requests that have none of their own
    asked: list[Asked] = field(default_factory=list)
    url: str = ""


@contextmanager
def serving() -> Iterator[Service]:
    """A service that answers while the block runs."""
    service = Service()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, service))
    service.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer goes out as one, or its second half would wait for the first

    def __init__(self, service: Service, *arguments: Any) -> None:
        self.service = service
        super().__init__(*arguments)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: stderr is what the tests look at."""

    def do_POST(self) -> None:
        """Answer, or do what is wrong."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = Asked(self.path, self.headers["Authorization"], body)
        self.service.asked.append(asked)
        fault = self.service.faults.popleft() if self.service.faults else self.service.always
        if fault == "cut":
            return self._cut(gone=False)
        if fault == "reset":
            return self._cut(gone=True)
        if fault.startswith("drip"):
            return self._drip(b"HTTP/1.1 200 OK\r\n" if fault == "drip headers" else b"")
        if fault.isdigit():
            return self._refuse(int(fault), asked)
        if fault == "no credit":
            return self._send(
                429, {"error": {"message": "no credit", "code": "insufficient_quota"}}
            )
        if fault == "html":
            return self._send(200, "<html>busy</html>")
        if fault == "other JSON":
            return self._send(200, {"choices": [{"text": "Output (a)"}]})
        if fault == "too long":
            return self._send(200, "x" * (1 << 21))
        said = "I would rather not." if fault == "nonsense" else self.service.says(*asked.outputs)
        usage = {"prompt_tokens": 100, "completion_tokens": 4}
        return self._send(200, {"choices": [{"message": {"content": said}}], "usage": usage})

    def _refuse(self, status: int, asked: Asked) -> None:
        message = f"{asked.body['model']} \x1b[2J cannot be asked with {asked.key}"
        headers = {"Retry-After": self.service.after} if status == 429 else {}
        self._send(status, {"error": {"message": message}}, headers)

    def _send(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
        text = content if isinstance(content, str) else json.dumps(content)
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(text))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    def _drip(self, head: bytes) -> None:
        """Send a byte now and then, of the headers or of the body, until the client has gone."""
        self.close_connection = True
        if not head:
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            self.wfile.flush()
        try:
            while True:
                self.connection.sendall(head or b" ")
                head = b"X" if head else b""
                time.sleep(DRIP)
        except OSError:
            return

    def _cut(self, *, gone: bool) -> None:
        """End in the middle of an answer; or without any, and with no goodbye."""
        self.close_connection = True
        if gone:
            now = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
            self.rfile.close()
            self.connection.close()
            return
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b'{"choices": [{"mess')


if __name__ == "__main__":
    with serving() as told:
        sys.stdout.write(f"--judge-url {told.url} --judge-model longer\n")
        sys.stdout.flush()
        signal.pause()
