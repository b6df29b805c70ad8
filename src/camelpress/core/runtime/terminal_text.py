"""Text from outside as a terminal may show it: nothing in it acts on the terminal, or hides.

A model can be made to say escape sequences, and a file to be named by them: they move the cursor,
rewrite what stands above, set the clipboard or the window's title. Here each control character is a
sign that can be seen, and characters that turn the direction of reading are a replacement mark.
"""

from __future__ import annotations

import unicodedata

SAFE_CHARACTERS = frozenset("\n\t\u200c\u200d")  # the latter two join letters and emoji
CONTROL_PICTURES = 0x2400  # where Unicode has a picture of each control character
DELETE, DELETE_PICTURE = 0x7F, "\u2421"
REPLACEMENT = "\ufffd"
CONTROL_CATEGORIES = (
    "Cc",
    "Cf",
    "Cs",
    "Zl",
    "Zp",
)  # control, format, surrogate, line and paragraph separator


def escape_controls(text: str) -> str:
    """The text with a visible sign for each character that would do something to a terminal."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_visible_sign, text))


def _visible_sign(letter: str) -> str:
    if letter in SAFE_CHARACTERS or unicodedata.category(letter) not in CONTROL_CATEGORIES:
        return letter
    code = ord(letter)
    if code < 0x20:
        return chr(CONTROL_PICTURES + code)
    return DELETE_PICTURE if code == DELETE else REPLACEMENT
