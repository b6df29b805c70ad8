"""Reads texts and conversations from files, for calibration and scoring.

A document is a plain text or a conversation. A file of prose is one text; JSON holds one document
per row, in any layout of `dataset_formats`. The content of a file decides its type. Each omitted
row or field is counted with its reason.
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
    """Documents of a file.

    Args:
        documents: documents in the order of the file; those of a message table come last.
        rows: number of rows in the file; 1 for one text.
        omissions: unit and reason to number of omissions.
        sha256: SHA-256 of the file's bytes.
        first_omission: label of the row with the first omission, and the omission.
    """

    documents: list[Document]
    rows: int
    omissions: OmissionCounts
    sha256: str
    first_omission: tuple[str, Omission] | None = None


def read_documents(path: Path) -> list[Document]:
    """Reads the documents of a file, as `read_corpus` does."""
    return read_corpus(path).documents


def read_corpus(path: Path) -> Corpus:
    """Reads a file of text, JSON or JSON lines, and notes omissions.

    Args:
        path: path of the file; its content may be compressed by gzip.
    Raises:
        RecipeProblem: the file cannot be read, is damaged or of another format, or has no usable
            row, or a document is too long for a tokenizer.
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
    """Checks that file names are unique, because reports name texts without their folders.

    Raises:
        RecipeProblem: two texts have the same name.
    """
    for name in names:
        if names.count(name) > 1:
            raise RecipeProblem(f"two texts are called {name}", next_step="rename one of them")


def encode_document(document: Document, tokenizer: Tokenizer) -> list[int]:
    """Encodes a conversation in the Tulu format, or a text with the tokenizer's special tokens."""
    if isinstance(document, str):
        return tokenizer.encode_document(document)
    return encode_chat(document, tokenizer)


def _corpus_of_rows(path: Path, file: TextFile) -> Corpus:
    table = json_rows(path, file.text, _is_row)
    counter = OmissionCounter()
    documents: list[Document] = []
    for label, item in [*_read_rows(path, table.rows), *_unread_fields(path, table.envelope)]:
        if isinstance(item, Omission):
            counter.add(label, item)
        else:
            _require_short(label, item)
            documents.append(item)
    if not documents and len(table.rows) == 1:
        require_rows(path, table.rows[0][1], _is_row)
    _require_documents(path, documents, counter)
    return Corpus(documents, len(table.rows), counter.counts, file.sha256, counter.first_omission)


def _read_rows(
    path: Path, rows: Iterable[tuple[str, Any]]
) -> Iterator[tuple[str, Document | Omission]]:
    """Yields label and document or omission of all rows; message tables come last."""
    messages = []
    for label, value in rows:
        if not isinstance(value, Mapping):
            reason = f"it is {json_kind(value)}, not an object with named fields"
            yield label, Omission(reason, next_step=ROW_ADVICE)
        elif is_message(row := JsonFields(value)):
            messages.append(row)
        else:
            yield from ((label, item) for item in read_row(row))
    yield from ((str(path), item) for item in read_table(messages))


def _require_short(label: str, document: Document) -> None:
    """Checks the length of a text, or of all messages of a conversation."""
    if isinstance(document, str):
        require_short_text(label, document)
    else:
        contents = [message.content for message in document]
        require_short_text(label, *contents, next_step="shorten its messages, or leave it out")


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
    label, omission = counter.first_omission
    raise RecipeProblem(
        f"{path} has no row that can be used: {label} is left out because {omission.reason}",
        next_step=omission.next_step,
    )
