"""Text of generated tokens: token by token in whole characters, or of a whole completion."""

from __future__ import annotations

from collections.abc import Sequence

from camelpress.core.text.hf_tokenizer import Tokenizer

REPLACEMENT_CHARACTER = "\ufffd"  # decoded from the bytes of an incomplete character


class Detokenizer:
    """Text that grows by whole characters; the sum of its parts is the text of all tokens.

    A token may hold part of a character, and its text may depend on the token before it (some
    tokenizers drop the space at the beginning of a text). Each new part is therefore the
    difference of two decodings from the same token, one step back.

    Args:
        tokenizer: tokenizer of the ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._emitted = 0  # number of ids already emitted as text
        self._start = 0  # index of the first id of the last emitted part

    def add_token(self, token: int) -> str:
        """Returns the text completed by a token, empty inside a character."""
        self._ids.append(token)
        text = self._pending_text()
        if not text or text.endswith(REPLACEMENT_CHARACTER):
            return ""
        self._start, self._emitted = self._emitted, len(self._ids)
        return text

    def finish(self) -> str:
        """Returns the remaining text, with a replacement character for an incomplete one."""
        text = self._pending_text()
        self._start = self._emitted = len(self._ids)
        return text

    def _pending_text(self) -> str:
        prefix = self._tokenizer.decode(self._ids[self._start : self._emitted])
        return self._tokenizer.decode(self._ids[self._start :])[len(prefix) :]


def decode_completion(tokenizer: Tokenizer, prompt: Sequence[int], tokens: Sequence[int]) -> str:
    """Returns the text of the tokens after the prompt, with a leading space."""
    before = [*prompt[-1:]]
    return tokenizer.decode_text([*before, *tokens])[len(tokenizer.decode_text(before)) :]
