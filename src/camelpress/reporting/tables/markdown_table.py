"""Writes tables in Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

LEFT, RIGHT = ":--", "--:"  # alignment of a column


def markdown_table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    alignments: Sequence[str],
    escape: Callable[[str], str] = str,
) -> str:
    """Writes a table; `escape` converts the cells of the rows, but not the header."""
    cells = [[escape(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, alignments, *cells])


def escape_markdown(text: str) -> str:
    """Escapes Markdown and HTML and joins the lines."""
    return re.sub(r"([\\`*\[\]<>|&])", r"\\\1", " ".join(text.split()))
