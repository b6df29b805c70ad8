"""Bounds the text that a tokenizer encodes at once, whose memory grows with each byte of it."""

from __future__ import annotations

from camelpress.core.errors import RecipeProblem
from camelpress.core.input_limits import MAX_TEXT_BYTES

SPLIT = (
    'split it into rows of JSON lines, such as {"text": "..."}, at blank lines or between sentences'
)


def require_short_text(place: str, *texts: str, next_step: str = SPLIT) -> None:
    """Checks that texts have at most `MAX_TEXT_BYTES` bytes of UTF-8 together.

    Args:
        place: names the file and the row, or the item, at the start of a sentence.
        texts: all that is encoded at once.
        next_step: how to make the text shorter.
    Raises:
        RecipeProblem: the texts are longer.
    """
    characters = sum(map(len, texts))
    if characters <= MAX_TEXT_BYTES // 4:  # no character has more than four bytes
        return
    size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    if size > MAX_TEXT_BYTES:
        raise RecipeProblem(
            f"{place} is a text of {size:,} bytes, and at most {MAX_TEXT_BYTES:,} are tokenized "
            "at once",
            next_step=next_step,
        )
