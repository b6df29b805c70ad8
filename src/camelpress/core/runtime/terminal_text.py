"""Escapes control characters in untrusted text before a terminal shows it.

Model outputs and file names can contain escape sequences: they move the cursor, overwrite earlier
lines, set the clipboard or the window title. Each control character becomes a visible sign; each
character with an effect on the reading direction becomes a replacement mark.
"""

from __future__ import annotations

import unicodedata

SAFE_CHARACTERS = frozenset("\n\t\u200c\u200d")  # the latter two join letters and emoji
CONTROL_PICTURES = 0x2400  # first code point of the pictures of control characters
DELETE, DELETE_PICTURE = 0x7F, "\u2421"
REPLACEMENT = "\ufffd"
# Unicode categories: control, format, surrogate, line separator, paragraph separator.
CONTROL_CATEGORIES = ("Cc", "Cf", "Cs", "Zl", "Zp")


def escape_controls(text: str) -> str:
    """Replaces each character that acts on a terminal with a visible sign."""
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
