"""Reads JSON as rows: a list, one value per line, values in sequence, or one list in an object.

The content decides, not the name of the file, but a file with a JSON suffix is read as JSON.
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
from camelpress.core.files.json_files import require_unique_keys
from camelpress.core.files.text_recognizer import content_suffix

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson", ".jsonlines")
BYTE_ORDER_MARK = "\ufeff"  # may begin each of several concatenated files
BLANKS = re.compile(rf"[ \t\r\n{BYTE_ORDER_MARK}]*")
OBJECT = re.compile(r'\[?\s*\{\s*"(?:[^"\\\n]|\\.)*"\s*:')  # start of an object or list of objects
LINE = re.compile(  # an object, or a list with a text or an object first
    r'\{\s*"(?:[^"\\]|\\.)*"\s*:.*\},?|\[\s*["{].*\],?'
)

IsRow = Callable[[Mapping[str, Any]], bool]


class RowTable(NamedTuple):
    """Labelled rows of a file, and the other fields of the object around them."""

    rows: list[tuple[str, Any]]
    envelope: Mapping[str, Any] = MappingProxyType({})


def has_json_suffix(path: Path) -> bool:
    """Returns True for a file name with a suffix of JSON or JSON lines."""
    return content_suffix(path) in JSON_SUFFIXES


def looks_like_json(text: str) -> bool:
    """Returns True for JSON, damaged or not, and False for prose with a bracket first.

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
        path: path of the file, for labels and messages.
        text: list of rows, one row, rows in sequence, or an object with one list of rows.
        is_row: returns True for an object that is a row, not the envelope of a list.
    Raises:
        RecipeProblem: the text is not JSON, an object holds several lists of rows, or the file is
            an answer of the dataset viewer.
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
    """Returns the rows of an object's only list of objects, or only list of rows."""
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
        rest = {field: value for field, value in envelope.items() if field != key}
        return _number_rows(f"{path}:{field_name(key)}", items)._replace(envelope=rest)
    return None


def _number_rows(name: str, items: Sequence[Any]) -> RowTable:
    return RowTable([(f"{name}[{number}]", item) for number, item in enumerate(items)])


def _decode_values(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """Yields JSON values in sequence, with the number of their first line."""
    decoder = json.JSONDecoder(object_pairs_hook=require_unique_keys)
    line, counted_to = 1, 0
    position = _skip_blanks(text, 0)
    while position < len(text):
        line, counted_to = line + text.count("\n", counted_to, position), position
        try:
            value, end = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            fault_position = _fault_position(text, position, error.pos)
            raise _json_problem(path, text, error.msg, fault_position) from error
        except (ValueError, RecursionError) as error:
            raise _json_problem(path, text, str(error), position) from error
        yield line, value
        position = _skip_blanks(text, end)


def _fault_position(text: str, start: int, position: int) -> int:
    """Returns the position of a fault; at the start of a line it moves to the text before."""
    line = text.rfind("\n", 0, position) + 1
    return (
        position
        if position == start or text[line:position].strip()
        else len(text[:position].rstrip())
    )


def _json_problem(path: Path, text: str, fault: str, position: int) -> RecipeProblem:
    line, column = text.count("\n", 0, position) + 1, position - text.rfind("\n", 0, position)
    is_cut = fault.startswith("Unterminated string") or not text[position:].strip()
    return RecipeProblem(
        f"{path}:{line} is not valid JSON ({fault}, column {column})",
        next_step="download the file again, or leave out its last row"
        if is_cut
        else "mend or leave out that line",
    )


def _skip_blanks(text: str, position: int) -> int:
    match = BLANKS.match(text, position)
    return match.end() if match else position
