"""Texts and conversations from files, for calibration and for scoring alike.

A document is a plain text or a conversation. Plain files are one text; JSON and JSON lines hold
documents row by row, in any of the layouts of `core.layouts`. A JSON file that is one row, such as
a task of Super-NaturalInstructions, stands for a list of it. Any file may be compressed (`.gz`).
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from camelpress.core.errors import RecipeProblem
from camelpress.core.layouts import LAYOUTS, Document
from camelpress.core.prompt import encode
from camelpress.core.tokens import Tokenizer


def read_documents(path: Path) -> list[Document]:
    """All documents of a file.

    Args:
        path: `.jsonl`, `.json`, or anything else as UTF-8 text; each may end in `.gz`.
    Raises:
        RecipeProblem: the file is missing, empty or not UTF-8, or a row has no known layout.
    """
    try:
        packed = path.suffix == ".gz"
        content = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
        text = content.decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise RecipeProblem(
            f"{path} cannot be read as UTF-8 text ({type(error).__name__})",
            next_step="give a text, JSON or JSON lines file",
        ) from error
    kind = path.with_suffix("").suffix if packed else path.suffix
    if kind in (".json", ".jsonl"):
        documents = [
            document for place, row in _rows(path, kind, text) for document in _read(place, row)
        ]
    else:
        documents = [text] if text.strip() else []
    if not documents:
        raise RecipeProblem(f"{path} holds no text", next_step="give a file that does")
    return documents


def require_own_names(names: Sequence[str]) -> None:
    """See that reports can tell texts apart, which they name without their folders.

    Raises:
        RecipeProblem: two texts have the same name.
    """
    for name in names:
        if names.count(name) > 1:
            raise RecipeProblem(f"two texts are called {name}", next_step="rename one of them")


def encode_document(document: Document, tokenizer: Tokenizer) -> list[int]:
    """The ids of a conversation in the Tulu format, or of a text as the tokenizer encodes it."""
    if isinstance(document, str):
        return tokenizer.encode_document(document)
    return encode(document, tokenizer)


def _rows(path: Path, kind: str, content: str) -> Iterator[tuple[str, Any]]:
    if kind == ".json":
        rows = _parsed(str(path), content, "give a list of rows")
        if isinstance(rows, Mapping) and any(layout.fits(rows) for layout in LAYOUTS):
            yield str(path), rows
            return
        if not isinstance(rows, list):
            raise RecipeProblem(f"{path} is not a JSON list", next_step="give a list of rows")
        for number, row in enumerate(rows):
            yield f"{path}[{number}]", row
        return
    for number, line in enumerate(content.split("\n"), start=1):  # JSON may hold U+2028
        if line.strip():
            place = f"{path}:{number}"
            yield place, _parsed(place, line, "mend or leave out that line")


def _parsed(place: str, content: str, next_step: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RecipeProblem(f"{place} is not valid JSON ({error})", next_step=next_step) from error


def _read(place: str, row: Any) -> list[Document]:
    """The documents of a row; none where the row holds no finished answer."""
    if not isinstance(row, Mapping):
        raise RecipeProblem(f"{place} is not an object", next_step="give a row with named fields")
    for layout in LAYOUTS:
        if layout.fits(row):
            try:
                documents = [document for document in layout.read(row) if document]
                for document in documents:
                    _contents(document).encode("utf-8")  # fails on half of a surrogate pair
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                own = type(error) is ValueError  # raised by a reader, in its own words
                fault = error if own else "not in their usual form"
                raise RecipeProblem(
                    f"{place} has the fields {', '.join(layout.keys)}, but {fault}",
                    next_step="mend or leave out that row",
                ) from error
            return documents
    known = "; ".join(
        ", ".join(layout.keys) + (f" with {layout.mark}" if layout.mark else "")
        for layout in LAYOUTS
    )
    raise RecipeProblem(
        f"{place} has only the fields {', '.join(sorted(map(str, row)))}",
        next_step=f"use one of the layouts: {known}",
    )


def _contents(document: Document) -> str:
    if isinstance(document, str):
        return document
    return "".join(message.content for message in document)
