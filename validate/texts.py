"""Held-out texts as token sequences."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from camelpress.core.documents import encode_document, read_documents, require_own_names
from camelpress.core.errors import RecipeProblem
from camelpress.core.provenance import sha256_file
from camelpress.core.tokens import Tokenizer
from camelpress.validate.settings import Validate


@dataclass(frozen=True)
class Text:
    """A text as token sequences."""

    name: str
    sha256: str
    sequences: list[list[int]]


def read_texts(settings: Validate, tokenizer: Tokenizer, limit: int) -> list[Text]:
    """Every text of the settings, in pieces of at most `limit` tokens.

    Raises:
        RecipeProblem: there is none, two have one name, or one is too short to score a token.
    """
    if not settings.text:
        raise RecipeProblem("there is no text to score", next_step="give --text FILE")
    require_own_names([path.name for path in settings.text])
    return [_text(path, tokenizer, limit, settings.max_tokens) for path in settings.text]


def _text(path: Path, tokenizer: Tokenizer, limit: int, max_tokens: int | None) -> Text:
    sequences: list[list[int]] = []
    left = max_tokens if max_tokens is not None else 2**62
    for document in read_documents(path):
        ids = encode_document(document, tokenizer)
        whole = ids if isinstance(document, str) else ids[:limit]
        for start in range(0, len(whole), limit):
            piece = whole[start : start + limit][:left]
            if len(piece) > 1:
                sequences.append(piece)
                left -= len(piece)
    if not sequences:
        raise RecipeProblem(f"{path} has no two tokens in a row", next_step="give a longer text")
    return Text(path.name, sha256_file(path), sequences)
