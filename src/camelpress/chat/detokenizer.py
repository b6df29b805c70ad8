"""Tokens to text while they come: whole characters only, and in the end the text of all tokens."""

from __future__ import annotations

from camelpress.core.text.hf_tokenizer import Tokenizer

REPLACEMENT_CHARACTER = "\ufffd"  # what a tokenizer makes of bytes that are no character yet


class Detokenizer:
    """Text that grows by whole characters.

    A token may hold a part of a character, and how a token reads can hang on the one before it
    (the blank that some tokenizers drop at the beginning of a text). So each new stretch of text
    is the difference of two decodings that begin at the same token, one step back.

    Args:
        tokenizer: the ids are of.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._emitted = 0  # so many ids stand in the text already
        self._before = 0  # where the stretch began that was told last

    def add_token(self, token: int) -> str:
        """The text that is certain now; none while a character is not complete."""
        self._ids.append(token)
        text = self._new()
        if not text or text.endswith(REPLACEMENT_CHARACTER):
            return ""
        self._before, self._emitted = self._emitted, len(self._ids)
        return text

    def finish(self) -> str:
        """What is left: a mark where a character was never completed."""
        text = self._new()
        self._before = self._emitted = len(self._ids)
        return text

    def _new(self) -> str:
        known = self._tokenizer.decode(self._ids[self._before : self._emitted])
        return self._tokenizer.decode(self._ids[self._before :])[len(known) :]
