"""A server on this machine that sends more than anyone asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler
from typing import Any

from local_server import answering

PIECE = b" " * 2**16
Reply = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def replying(reply: Reply) -> Iterator[str]:
    """Yields the address of a server that answers every request alike."""
    with answering(partial(Handler, reply)) as address:
        yield address


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, reply: Reply, *arguments: Any) -> None:
        self.reply = reply
        super().__init__(*arguments)

    def log_message(self, format: str, *args: Any) -> None:
        """Logs nothing."""

    def do_GET(self) -> None:
        self.close_connection = True
        try:
            self.reply(self)
        except OSError:
            return  # the client has enough

    do_HEAD = do_GET


def send_head(handler: BaseHTTPRequestHandler, status: int, **headers: object) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), str(value))
    handler.send_header("Connection", "close")  # as it does, so that no client asks again on it
    handler.end_headers()


def send_endless(handler: BaseHTTPRequestHandler) -> None:
    """Sends blanks in chunks until the client closes the connection."""
    while handler.command != "HEAD":
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(PIECE), PIECE))


def endless(handler: BaseHTTPRequestHandler, status: int = 200) -> None:
    send_head(handler, status, Content_Type="application/json", Transfer_Encoding="chunked")
    send_endless(handler)
