"""Recognizes JSON behind comments or inside Markdown fences, which no JSON reader takes."""

from __future__ import annotations

import re
from pathlib import Path

from camelpress.core.documents.json_rows import looks_like_json
from camelpress.core.errors import RecipeProblem

COMMENT = re.compile(r"^[ \t]*//.*$", re.MULTILINE)
FENCE = re.compile(r"[ \t]*(?:```+|~~~+)[ \t]*[\w+-]*[ \t]*")  # a line; may name a language


def require_bare_json(path: Path, text: str) -> None:
    """Checks that a text is not plainly JSON after comment lines or with fences around all of it.

    Raises:
        RecipeProblem: it is.
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
    """Returns the content of the fenced blocks of a text; empty where anything stands outside."""
    if not FENCE.match(text.lstrip()):
        return ""
    inside, is_open = [], False
    for line in text.split("\n"):
        if FENCE.fullmatch(line):
            is_open = not is_open
        elif is_open:
            inside.append(line)
        elif line.strip():
            return ""
    return "\n".join(inside)
