"""Limits the bytes of one registry response in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from camelpress.core.input_limits import MAX_ANSWER_BYTES


class LimitedBody:
    """Response body of the requests library, cut off after `MAX_ANSWER_BYTES`."""

    def __init__(self, body: Any) -> None:
        self._body = body

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)

    def stream(self, *arguments: Any, **options: Any) -> Iterator[bytes]:
        """Yields chunks of the body until the limit is exceeded."""
        size = 0
        for chunk in self._body.stream(*arguments, **options):
            yield chunk
            size += len(chunk)
            if size > MAX_ANSWER_BYTES:
                self._body.close()
                return


def limit_body(response: Any, *_arguments: Any, stream: bool = False, **_options: Any) -> None:
    """Limits the body of a response without streaming; serves as a hook of a requests session."""
    if not stream:
        response.raw = LimitedBody(response.raw)
