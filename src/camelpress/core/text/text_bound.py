"""Bounds the bytes a tokenizer encodes at once, because its memory grows with them."""

from __future__ import annotations

from camelpress.core.errors import RecipeProblem
from camelpress.core.input_limits import MAX_TEXT_BYTES

SPLIT = (
    'split it into rows of JSON lines, such as {"text": "..."}, at blank lines or between sentences'
)


def require_short_text(label: str, *texts: str, next_step: str = SPLIT) -> None:
    """Checks that texts have at most `MAX_TEXT_BYTES` bytes of UTF-8 together.

    Args:
        label: name of the file and row, or of the item, at the start of a message.
        texts: texts to encode at once.
        next_step: advice for a shorter text.
    Raises:
        RecipeProblem: the texts have more bytes.
    """
    characters = sum(map(len, texts))
    if characters <= MAX_TEXT_BYTES // 4:  # no character has more than four bytes
        return
    size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    if size > MAX_TEXT_BYTES:
        raise RecipeProblem(
            f"{label} is a text of {size:,} bytes, and at most {MAX_TEXT_BYTES:,} are tokenized "
            "at once",
            next_step=next_step,
        )
