"""Reads JSON as rows: a list, a value a line, values in sequence, or one list in an object.

The content decides, not the name of the file. A name that promises JSON is believed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from camelpress.core.documents.json_fields import field_name
from camelpress.core.errors import RecipeProblem
from camelpress.core.files.text_recognizer import content_suffix

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson", ".jsonlines")
BYTE_ORDER_MARK = (
    "\ufeff"  # a byte order mark; each of several files put together may begin with one
)
BLANKS = re.compile(rf"[ \t\r\n{BYTE_ORDER_MARK}]*")
OBJECT = re.compile(r'\[?\s*\{\s*"(?:[^"\\\n]|\\.)*"\s*:')  # start of an object or a list of them
LINE = re.compile(  # an object, or a list that begins with a text or an object
    r'\{\s*"(?:[^"\\]|\\.)*"\s*:.*\},?|\[\s*["{].*\],?'
)

IsRow = Callable[[Mapping[str, Any]], bool]


class RowTable(NamedTuple):
    """Rows of a file, each with its place, and the other fields of an object that holds them."""

    rows: list[tuple[str, Any]]
    envelope: Mapping[str, Any] = MappingProxyType({})


def has_json_suffix(path: Path) -> bool:
    """Returns whether a file's name ends as those of JSON and JSON lines do."""
    return content_suffix(path) in JSON_SUFFIXES


def looks_like_json(text: str) -> bool:
    """Returns whether a text is plainly JSON, perhaps damaged, and not prose with a bracket first.

    A text is JSON if it is one list or object, if it begins with an object and no prose follows, or
    if more than half of its lines are objects or lists.
    """
    start = _skip_blanks(text, 0)
    if text[start : start + 1] in ("[", "{"):
        try:
            end = _skip_blanks(text, json.JSONDecoder().raw_decode(text, start)[1])
        except (ValueError, RecursionError):
            end = start
        if end == len(text) or (OBJECT.match(text, start) and text[end] in "[{,"):
            return True
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    return 2 * sum(LINE.fullmatch(line) is not None for line in lines) > len(lines)


def json_rows(path: Path, text: str, is_row: IsRow) -> RowTable:
    """Returns the rows of a JSON text.

    Args:
        path: names the file in places.
        text: a list of rows, one row, rows one after another, or an object with one list of rows.
        is_row: whether an object is a row by itself, rather than the envelope of a list.
    Raises:
        RecipeProblem: the text is not JSON, an object holds several lists of rows, or it is an
            answer of the dataset viewer.
    """
    values = list(_decode_values(path, text))
    if len(values) != 1:
        return RowTable([(f"{path}:{line}", value) for line, value in values])
    line, value = values[0]
    if isinstance(value, list):
        return _number_rows(str(path), value)
    if isinstance(value, Mapping) and not is_row(value):
        table = _unwrap_envelope(path, value, is_row)
        if table:
            return table
    return RowTable([(f"{path}:{line}", value)])


def _unwrap_envelope(path: Path, envelope: Mapping[str, Any], is_row: IsRow) -> RowTable | None:
    """Returns the only list of objects in an object, or the only one that begins with a row."""
    lists = {
        key: items
        for key, items in envelope.items()
        if isinstance(items, list) and all(isinstance(item, Mapping) for item in items)
    }
    if {"features", "rows"} <= lists.keys() and all("row_idx" in row for row in lists["rows"]):
        raise RecipeProblem(
            f"{path} is an answer of the hub's dataset viewer: a few rows, with long texts cut",
            next_step="give the data set's own file as hf:ORG/NAME:FILE, or save it whole: "
            "datasets.load_dataset('ORG/NAME', split='train').to_json('rows.jsonl')",
        )
    if len(lists) > 1:
        lists = {key: items for key, items in lists.items() if items and is_row(items[0])} or lists
    if len(lists) > 1:
        raise RecipeProblem(
            f"{path} holds several lists of rows ({', '.join(map(field_name, lists))})",
            next_step="save one of them as a list of its own",
        )
    for key, items in lists.items():
        rest = {other: value for other, value in envelope.items() if other != key}
        return _number_rows(f"{path}:{field_name(key)}", items)._replace(envelope=rest)
    return None


def _number_rows(name: str, items: Sequence[Any]) -> RowTable:
    return RowTable([(f"{name}[{number}]", item) for number, item in enumerate(items)])


def _decode_values(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """Yields JSON values one after another, each with the number of the line where it begins."""
    decoder = json.JSONDecoder(object_pairs_hook=_require_unique)
    line, counted = 1, 0
    at = _skip_blanks(text, 0)
    while at < len(text):
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            place = _fault_position(text, at, error.pos)
            raise _json_problem(path, text, error.msg, place) from error
        except (ValueError, RecursionError) as error:
            raise _json_problem(path, text, str(error), at) from error
        yield line, value
        at = _skip_blanks(text, end)


def _require_unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("an object has one key twice")
    return values


def _fault_position(text: str, begin: int, at: int) -> int:
    """Returns the place of a fault; one at the start of a line lies at the end of what precedes."""
    line = text.rfind("\n", 0, at) + 1
    return at if at == begin or text[line:at].strip() else len(text[:at].rstrip())


def _json_problem(path: Path, text: str, fault: str, at: int) -> RecipeProblem:
    line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
    is_cut = fault.startswith("Unterminated string") or not text[at:].strip()
    return RecipeProblem(
        f"{path}:{line} is not valid JSON ({fault}, column {column})",
        next_step="download the file again, or leave out its last row"
        if is_cut
        else "mend or leave out that line",
    )


def _skip_blanks(text: str, at: int) -> int:
    match = BLANKS.match(text, at)
    return match.end() if match else at
