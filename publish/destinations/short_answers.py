"""Bounds what the client of a registry reads into memory of one answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from camelpress.core.input_limits import MAX_ANSWER_BYTES


class ShortBody:
    """The body of a response of requests, cut where it goes beyond `MAX_ANSWER_BYTES`."""

    def __init__(self, body: Any) -> None:
        self._body = body

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)

    def stream(self, *arguments: Any, **options: Any) -> Iterator[bytes]:
        """Yields the pieces of the body, the last of them beyond the bound."""
        size = 0
        for piece in self._body.stream(*arguments, **options):
            yield piece
            size += len(piece)
            if size > MAX_ANSWER_BYTES:
                self._body.close()
                return


def cut_body(response: Any, *_arguments: Any, stream: bool = False, **_options: Any) -> None:
    """Cuts the body of a response that is read as a whole: a hook of a session of requests."""
    if not stream:
        response.raw = ShortBody(response.raw)
