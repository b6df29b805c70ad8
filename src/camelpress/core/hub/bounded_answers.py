"""Bounds the size of one answer of the hub, in memory and on disk.

The client reads JSON and error answers whole, and files in chunks. The bound of a file is the size
from its HEAD request, or else its own Content-Length.

Source: huggingface_hub 2.4, utils/_http.py (set_client_factory, _format), file_download.py
(http_get, get_hf_file_metadata); httpx2 2.16, _models.py (Response).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import httpx2
from huggingface_hub import set_client_factory
from huggingface_hub.utils._http import default_client_factory

from camelpress.core.input_limits import MAX_ANSWER_BYTES, MAX_LISTING_PAGES, MAX_UNSIZED_FILE_BYTES

LINKED_SIZE = "X-Linked-Size"  # header with the size in bytes of a file at another address


class OversizedAnswer(ValueError):
    """An answer is larger than its bound or than the size stated before."""


class BoundedResponse(httpx2.Response):
    """A response with a bound on its content."""

    max_bytes: int | None = None  # bytes of content; None if Content-Length bounds it

    def read(self) -> bytes:
        """Reads the whole content of a short answer.

        Raises:
            OversizedAnswer: The content is larger than `MAX_ANSWER_BYTES`.
        """
        self.max_bytes = MAX_ANSWER_BYTES
        return bytes(super().read())

    def iter_bytes(self, chunk_size: int | None = None) -> Iterator[bytes]:
        """Yields the content in chunks, after decompression.

        Raises:
            OversizedAnswer: The content is larger than `max_bytes`.
        """
        size = 0
        for chunk in super().iter_bytes(chunk_size):
            size += len(chunk)
            if self.max_bytes is not None and size > self.max_bytes:
                raise OversizedAnswer(f"it sends more than {self.max_bytes:,} bytes in one answer")
            yield chunk


class AnswerBounds:
    """Response hook of a client: sets the bound of each response."""

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}  # address to size of its file in bytes
        self._pages: dict[str, int] = {}  # address of a listing page to number of pages before it

    def __call__(self, response: Any) -> None:
        """Bounds a response before its content is read, or records the size from a HEAD request.

        Raises:
            OversizedAnswer: A listing has too many pages.
        """
        address = str(response.request.url)
        if response.request.method == "HEAD":
            self._note_size(address, response)
            return
        self._count_page(address, response)
        response.__class__ = BoundedResponse  # the client has no setting for a response class
        is_sized = "Content-Length" in response.headers
        is_plain = "Content-Encoding" not in response.headers
        default_bound = None if is_sized and is_plain else MAX_UNSIZED_FILE_BYTES
        response.max_bytes = self._sizes.get(address, default_bound)

    def _count_page(self, address: str, response: Any) -> None:
        pages = self._pages.pop(address, 0) + 1
        next_url = response.links.get("next", {}).get("url")
        if next_url and pages >= MAX_LISTING_PAGES:
            raise OversizedAnswer(f"it lists one repository in more than {pages:,} answers")
        if next_url:
            self._pages[str(response.request.url.join(next_url))] = pages

    def _note_size(self, address: str, response: Any) -> None:
        length = response.headers.get("Content-Length", "") if response.is_success else ""
        size = response.headers.get(LINKED_SIZE, length)
        if size.isdecimal():
            for url in (address, response.headers.get("Location", address)):
                self._sizes[url] = int(size)


@cache
def bound_answers() -> None:
    """Installs the bounds in the hub client of this process."""
    set_client_factory(_client)


def _client() -> Any:
    client = default_client_factory()
    client.event_hooks = client.event_hooks | {"response": [AnswerBounds()]}
    return client
