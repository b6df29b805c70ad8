"""Bounds what the client of the hub reads into memory, or writes to disk, of one answer.

The client reads answers of JSON and of errors as a whole, and files piece by piece. A file may have
the size that its HEAD request stated, or else its own Content-Length.

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

LINKED_SIZE = "X-Linked-Size"  # header of a file that lies at another address, in bytes


class OversizedAnswer(ValueError):
    """A server sends more than an answer may hold, or than it stated."""


class BoundedResponse(httpx2.Response):
    """A response that ends in an error where it goes beyond its bound."""

    max_bytes: int | None = None  # of its content; None where HTTP itself ends it

    def read(self) -> bytes:
        """Reads the content of a short answer.

        Raises:
            OversizedAnswer: it is longer than `MAX_ANSWER_BYTES`.
        """
        self.max_bytes = MAX_ANSWER_BYTES
        return bytes(super().read())

    def iter_bytes(self, chunk_size: int | None = None) -> Iterator[bytes]:
        """Yields the content in pieces, after decompression.

        Raises:
            OversizedAnswer: it is longer than `max_bytes`.
        """
        size = 0
        for piece in super().iter_bytes(chunk_size):
            size += len(piece)
            if self.max_bytes is not None and size > self.max_bytes:
                raise OversizedAnswer(f"it sends more than {self.max_bytes:,} bytes in one answer")
            yield piece


class AnswerBounds:
    """Gives each response of a client its bound."""

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}  # bytes of the file at an address
        self._pages: dict[str, int] = {}  # pages of a listing before the one at an address

    def __call__(self, response: Any) -> None:
        """Bounds a response before its content is read, or notes the size that it states.

        Raises:
            OversizedAnswer: it is one page too many of a listing.
        """
        address = str(response.request.url)
        if response.request.method == "HEAD":
            self._note_size(address, response)
            return
        self._count_page(address, response)
        response.__class__ = BoundedResponse  # the client has no setting for it
        is_sized = "Content-Length" in response.headers
        is_plain = "Content-Encoding" not in response.headers
        unsized = None if is_sized and is_plain else MAX_UNSIZED_FILE_BYTES
        response.max_bytes = self._sizes.get(address, unsized)

    def _count_page(self, address: str, response: Any) -> None:
        pages = self._pages.pop(address, 0) + 1
        following = response.links.get("next", {}).get("url")
        if following and pages >= MAX_LISTING_PAGES:
            raise OversizedAnswer(f"it lists one repository in more than {pages:,} answers")
        if following:
            self._pages[str(response.request.url.join(following))] = pages

    def _note_size(self, address: str, response: Any) -> None:
        length = response.headers.get("Content-Length", "") if response.is_success else ""
        stated = response.headers.get(LINKED_SIZE, length)
        if stated.isdecimal():
            for place in (address, response.headers.get("Location", address)):
                self._sizes[place] = int(stated)


@cache
def bound_answers() -> None:
    """Makes the hub's client bound its answers, in this process."""
    set_client_factory(_client)


def _client() -> Any:
    client = default_client_factory()
    client.event_hooks = client.event_hooks | {"response": [AnswerBounds()]}
    return client
