"""Text from outside, made safe to stand in Markdown."""

from __future__ import annotations

import html
import re
from typing import Any

import yaml

MARKUP = re.compile(r"([\\`*_\[\]|~#$])")


class Ready(str):
    """Markdown of our own, which stands in the card as it is."""


def inert(value: object) -> str:
    """One line of plain text: no markup, HTML, front matter or control character survives."""
    if isinstance(value, Ready):
        return value
    plain = "".join(letter if letter.isprintable() else " " for letter in str(value))
    escaped = MARKUP.sub(r"\\\1", html.escape(" ".join(plain.split()), quote=False))
    return re.sub(r"-{3,}", r"\\\g<0>", escaped)


def read_front_matter(text: str) -> Any:
    """What stands between the first two lines of dashes, as plain data; None without any.

    Raises:
        yaml.YAMLError: it is not YAML.
    """
    found = re.match(r"---\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
    return yaml.safe_load(found[1]) if found else None
