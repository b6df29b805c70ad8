"""Escapes foreign text for Markdown, and reads cards with their front matter."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from camelpress.core.errors import CheckpointProblem, RecipeProblem
from camelpress.core.files.regular_files import read_regular
from camelpress.core.files.yaml_files import parse_yaml
from camelpress.core.input_limits import MAX_CARD_BYTES

FRONT_MATTER = re.compile(r"---\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", re.DOTALL)
MARKDOWN_SYNTAX = re.compile(r"([\\`*_\[\]|~#$])")


class SafeMarkdown(str):
    """Trusted Markdown, inserted into the card without escaping."""


def escape_card_text(value: object) -> str:
    """Turns a value into one line of plain text without markup, HTML or control characters."""
    if isinstance(value, SafeMarkdown):
        return value
    plain = "".join(letter if letter.isprintable() else " " for letter in str(value))
    escaped = MARKDOWN_SYNTAX.sub(r"\\\1", html.escape(" ".join(plain.split()), quote=False))
    return re.sub(r"-{3,}", r"\\\g<0>", escaped)


def read_card_text(path: Path) -> str:
    """Reads the text of a card.

    Raises:
        CheckpointProblem: the card is missing, too large, or not UTF-8.
    """
    try:
        return read_regular(path, MAX_CARD_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise CheckpointProblem(
            f"{path} cannot be read ({reason})", next_step="give a folder that publish wrote"
        ) from error


def read_front_matter(text: str, *, source: str = "the card") -> dict[str, Any]:
    """Parses the YAML between the first two lines of dashes; empty for a card without them.

    Args:
        text: text of a card.
        source: name of the card in errors.
    Raises:
        CheckpointProblem: the front matter is too long, not YAML, or not a mapping.
    """
    front = FRONT_MATTER.match(text)
    if front is None:
        return {}
    try:
        return parse_yaml(front[1], source=source)
    except RecipeProblem as error:
        raise CheckpointProblem(
            f"{source} has an unreadable front matter ({error.message})",
            next_step="correct the YAML between its two lines of ---",
        ) from error
