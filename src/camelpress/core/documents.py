"""Texts and conversations from files, for calibration and for scoring alike.

A document is a plain text or a conversation. Plain files are one text; JSON lists and JSON lines
hold a document a row, in any of the layouts of `LAYOUTS`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from camelpress.core.errors import RecipeProblem
from camelpress.core.prompt import Message, encode
from camelpress.core.tokens import Tokenizer

Document = str | tuple[Message, ...]
Row = Mapping[str, Any]
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant"}


def read_documents(path: Path) -> list[Document]:
    """All documents of a file.

    Args:
        path: `.jsonl`, `.json`, or anything else as UTF-8 text.
    Raises:
        RecipeProblem: the file is missing, empty or not UTF-8, or a row has no known layout.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeProblem(
            f"{path} cannot be read as UTF-8 text ({type(error).__name__})",
            next_step="give a text, JSON or JSON lines file",
        ) from error
    if path.suffix in (".json", ".jsonl"):
        documents = [
            document for place, row in _rows(path, content) for document in _document(place, row)
        ]
    else:
        documents = [content] if content.strip() else []
    if not documents:
        raise RecipeProblem(f"{path} holds no text", next_step="give a file that does")
    return documents


def require_own_names(paths: Sequence[Path]) -> None:
    """See that reports can tell files apart, which they name without their folders.

    Raises:
        RecipeProblem: two files have the same name.
    """
    names = [path.name for path in paths]
    for name in names:
        if names.count(name) > 1:
            raise RecipeProblem(f"two texts are called {name}", next_step="rename one of them")


def encode_document(document: Document, tokenizer: Tokenizer) -> list[int]:
    """The ids of a conversation in the Tulu format, or of a text as the tokenizer encodes it."""
    if isinstance(document, str):
        return tokenizer.encode_document(document)
    return encode(document, tokenizer)


def _rows(path: Path, content: str) -> Iterator[tuple[str, Any]]:
    if path.suffix == ".json":
        rows = _parsed(str(path), content, "give a list of rows")
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


def _document(place: str, row: Any) -> Iterator[Document]:
    """The document of a row; none where the row holds no finished answer."""
    if not isinstance(row, Mapping):
        raise RecipeProblem(f"{place} is not an object", next_step="give a row with named fields")
    for needed, read in LAYOUTS:
        if all(key in row for key in needed):
            try:
                document = read(row)
                _contents(document).encode("utf-8")  # fails on half of a surrogate pair
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                own = type(error) is ValueError  # raised by a reader, in its own words
                fault = error if own else "not in their usual form"
                raise RecipeProblem(
                    f"{place} has the fields {', '.join(needed)}, but {fault}",
                    next_step="mend or leave out that row",
                ) from error
            if document:
                yield document
            return
    known = "; ".join(", ".join(needed) for needed, _ in LAYOUTS)
    raise RecipeProblem(
        f"{place} has only the fields {', '.join(sorted(map(str, row)))}",
        next_step=f"use one of the layouts: {known}",
    )


def _contents(document: Document) -> str:
    if isinstance(document, str):
        return document
    return "".join(message.content for message in document)


def _text(row: Row) -> Document:
    text: str = row["text"]
    return text if text.strip() else ""


def _turn(user: str, answer: str) -> Document:
    return (Message(role="user", content=user), Message(role="assistant", content=answer))


def _messages(row: Row) -> Document:
    return tuple(Message(role=turn["role"], content=turn["content"]) for turn in row["messages"])


def _alpaca(row: Row) -> Document:
    """Instruction and input as the most frequent of Tulu's templates joins them."""
    given = row.get("input", "").strip()
    return _turn(f"{row['instruction'].strip()}\n\n{given}".strip(), row["output"])


def _dolly(row: Row) -> Document:
    given = row.get("context", "").strip()
    return _turn(f"{row['instruction'].strip()}\n\n{given}".strip(), row["response"])


def _sharegpt(row: Row) -> Document:
    """Conversations with turns of anyone but human and model are dropped, as in Tulu's mixture."""
    turns = [*row["conversations"], *([row["chosen"]] if "chosen" in row else [])]
    if not all(turn["from"] in SPEAKERS for turn in turns):
        return ()
    return tuple(
        Message.model_validate({"role": SPEAKERS[turn["from"]], "content": turn["value"]})
        for turn in turns
    )


def _completion(row: Row) -> Document:
    """The answer of one model; those of several would count the prompt more than once."""
    if len(row["completions"]) != 1:
        raise ValueError("not exactly one completion")
    return _turn(row["prompt"], row["completions"][0]["completion"])


# fmt: off
LAYOUTS: tuple[tuple[tuple[str, ...], Callable[[Row], Document]], ...] = (
    (("messages",),                 _messages),
    (("conversations",),            _sharegpt),
    (("instruction", "output"),     _alpaca),
    (("instruction", "response"),   _dolly),
    (("task_prompt", "task_output"), lambda row: _turn(row["task_prompt"], row["task_output"])),
    (("prompt", "completions"),     _completion),
    (("text",),                     _text),
)
# fmt: on
