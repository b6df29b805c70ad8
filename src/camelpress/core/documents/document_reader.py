"""Reads texts and conversations from files, for calibration and for scoring alike.

A document is a plain text or a conversation. Prose is one text; JSON holds documents row by row,
in any of the layouts of `core.layouts`. The content of a file decides which it is. Each row or
field that is left out is counted with its reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camelpress.core.documents.dataset_formats import (
    DATASET_FORMATS,
    Document,
    read_row,
    read_table,
)
from camelpress.core.documents.json_fields import JsonFields, json_kind
from camelpress.core.documents.json_rows import has_json_suffix, json_rows, looks_like_json
from camelpress.core.documents.message_trees import is_message
from camelpress.core.documents.omissions import (
    Omission,
    OmissionCounter,
    OmissionCounts,
    describe_omissions,
)
from camelpress.core.documents.text_file import TextFile, read_text_file
from camelpress.core.documents.wrapped_json import require_bare_json
from camelpress.core.errors import RecipeProblem
from camelpress.core.files.text_recognizer import empty_text_problem, require_prose, require_rows
from camelpress.core.progress import note
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.core.text.text_bound import require_short_text
from camelpress.core.text.tulu_format import encode_chat

ROW_ADVICE = (
    'write each row as an object: a conversation as {"messages": [...]}, a text as {"text": "..."}'
)


@dataclass(frozen=True)
class Corpus:
    """The documents of a file.

    Args:
        documents: in the order of the file; those of a table of messages come last.
        rows: number of rows in the file; 1 where it is one text.
        omissions: everything that is left out, counted by unit and reason.
        sha256: of the file's bytes.
        first_omission: the place of the first omission, and the omission.
    """

    documents: list[Document]
    rows: int
    omissions: OmissionCounts
    sha256: str
    first_omission: tuple[str, Omission] | None = None


def read_documents(path: Path) -> list[Document]:
    """Returns the documents of `read_corpus`."""
    return read_corpus(path).documents


def read_corpus(path: Path) -> Corpus:
    """Reads a file of text, JSON or JSON lines, and notes what is left out.

    Args:
        path: any name; the content may be compressed by gzip.
    Raises:
        RecipeProblem: the file cannot be read, is damaged or of another format, or holds no row
            that can be used, or one document is longer than a tokenizer may read at once.
    """
    file = read_text_file(path)
    require_bare_json(path, file.text)
    if has_json_suffix(path) or looks_like_json(file.text):
        corpus = _corpus_of_rows(path, file)
    else:
        require_short_text(str(path), file.text)
        require_prose(path, file.text)
        corpus = Corpus([file.text], 1, {}, file.sha256)
    if corpus.first_omission:
        summary = describe_omissions(corpus.omissions, corpus.rows)
        note(f"{path}: left out {summary}; the first is in {corpus.first_omission[0]}")
    return corpus


def require_unique_names(names: Sequence[str]) -> None:
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
    return encode_chat(document, tokenizer)


def _corpus_of_rows(path: Path, file: TextFile) -> Corpus:
    table = json_rows(path, file.text, _is_row)
    counter = OmissionCounter()
    documents: list[Document] = []
    for place, part in [*_read_rows(path, table.rows), *_unread_fields(path, table.envelope)]:
        if isinstance(part, Omission):
            counter.add(place, part)
        else:
            _require_short(place, part)
            documents.append(part)
    if not documents and len(table.rows) == 1:
        require_rows(path, table.rows[0][1], _is_row)
    _require_documents(path, documents, counter)
    return Corpus(documents, len(table.rows), counter.counts, file.sha256, counter.first_omission)


def _read_rows(
    path: Path, rows: Iterable[tuple[str, Any]]
) -> Iterator[tuple[str, Document | Omission]]:
    """Yields the documents and omissions of all rows; messages of a table are read together."""
    messages = []
    for place, value in rows:
        if not isinstance(value, Mapping):
            reason = f"it is {json_kind(value)}, not an object with named fields"
            yield place, Omission(reason, next_step=ROW_ADVICE)
        elif is_message(row := JsonFields(value)):
            messages.append(row)
        else:
            yield from ((place, part) for part in read_row(row))
    yield from ((str(path), part) for part in read_table(messages))


def _require_short(place: str, document: Document) -> None:
    """Checks that a tokenizer may read a text, or all messages of a conversation, at once."""
    if isinstance(document, str):
        require_short_text(place, document)
    else:
        contents = [message.content for message in document]
        require_short_text(place, *contents, next_step="shorten its messages, or leave it out")


def _unread_fields(path: Path, envelope: Mapping[str, Any]) -> Iterator[tuple[str, Omission]]:
    """Yields an omission for each field beside the list of rows."""
    yield from (
        (str(path), Omission(name, "fields")) for name in JsonFields(envelope).unread_fields()
    )


def _is_row(value: Mapping[str, Any]) -> bool:
    row = JsonFields(value)
    return is_message(row) or any(layout.matches_row(row) for layout in DATASET_FORMATS)


def _require_documents(path: Path, documents: Sequence[Document], counter: OmissionCounter) -> None:
    if documents:
        return
    if counter.first_omission is None:
        raise empty_text_problem(path)
    place, omission = counter.first_omission
    raise RecipeProblem(
        f"{path} has no row that can be used: {place} is left out because {omission.reason}",
        next_step=omission.next_step,
    )
