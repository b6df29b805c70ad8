"""Recognizes JSON behind comments or inside Markdown fences, unreadable for JSON parsers."""

from __future__ import annotations

import re
from pathlib import Path

from camelpress.core.documents.json_rows import looks_like_json
from camelpress.core.errors import RecipeProblem

COMMENT = re.compile(r"^[ \t]*//.*$", re.MULTILINE)
FENCE = re.compile(r"[ \t]*(?:```+|~~~+)[ \t]*[\w+-]*[ \t]*")  # a whole line; may name a language


def require_bare_json(path: Path, text: str) -> None:
    """Checks that a text is not JSON after comment lines or inside fences.

    Raises:
        RecipeProblem: the text is JSON with comment lines, or inside fences.
    """
    if COMMENT.match(text.lstrip()) and looks_like_json(COMMENT.sub("", text)):
        raise RecipeProblem(
            f"{path} is JSON with // comments, and no text", next_step="remove the comment lines"
        )
    if looks_like_json(_fenced(text)):
        raise RecipeProblem(
            f"{path} is JSON inside Markdown fences, and no text",
            next_step="remove the lines of the fences",
        )


def _fenced(text: str) -> str:
    """Returns the content of a text's fenced blocks; empty if any text lies outside them."""
    if not FENCE.match(text.lstrip()):
        return ""
    block_lines, is_open = [], False
    for line in text.split("\n"):
        if FENCE.fullmatch(line):
            is_open = not is_open
        elif is_open:
            block_lines.append(line)
        elif line.strip():
            return ""
    return "\n".join(block_lines)
