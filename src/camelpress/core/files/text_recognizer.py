"""Recognizes files of other formats in place of a text and suggests a conversion for each."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any

from camelpress.core.errors import RecipeProblem
from camelpress.core.files.file_recognizer import BYTE_ORDER_MARK, recognize_text

PANDAS = "pandas.read_{}.to_json('rows.jsonl', orient='records', lines=True)"
TABLE_ADVICE = (
    "name its columns like a known layout (text; instruction, output; inputs, targets) and "
    "convert it to JSON lines: " + PANDAS
)
UNPACK_ADVICE = "unpack it and give a file in it"
EXPORT_ADVICE = "save its text as UTF-8"

# fmt: off
FILE_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (  # first bytes, format, next step
    (b"PAR1",                "a Parquet file",        TABLE_ADVICE.format("parquet(FILE)")),
    (b"ARROW1",              "an Arrow file",         TABLE_ADVICE.format("feather(FILE)")),
    (b"\xff\xff\xff\xff",    "an Arrow stream",       "convert it to JSON lines: datasets.Dataset"
                                                      ".from_file(FILE).to_json('rows.jsonl')"),
    (b"PK\x03\x04",          "a zip archive",         UNPACK_ADVICE),
    (b"PK\x05\x06",          "a zip archive",         UNPACK_ADVICE),
    (b"%PDF-",               "a PDF document",        EXPORT_ADVICE),
    (b"{\\rtf",              "an RTF document",       EXPORT_ADVICE),
    (b"\xd0\xcf\x11\xe0",    "an Office document",    EXPORT_ADVICE),
    (b"SQLite format 3\x00", "an SQLite database",    "export its table as JSON lines"),
    (b"\x93NUMPY",           "a NumPy array",         "export its texts as JSON lines"),
)
# fmt: on
XML = re.compile(rb"\s*<\?xml\b")
PYTHON_LITERAL = re.compile(r"\s*\[?\s*\{\s*'[^'\n]*'\s*:")
COLUMN_NAMES = frozenset(
    "answer chosen completion content context conversation conversations input inputs instruction "
    "label messages output prompt question response role source target targets text title".split()
)
SEPARATORS = (  # separator, format, reader of pandas
    (",", "CSV", "csv(FILE)"),
    ("\t", "TSV", "table(FILE)"),
    (";", "CSV", "csv(FILE, sep=';')"),
)
TABS_LINES = 3  # lines with the same number of tabs in a table, at least


def require_text_bytes(path: Path, content: bytes) -> None:
    """Checks that a file does not begin with the signature of another format.

    Raises:
        RecipeProblem: The file has another format.
    """
    if XML.match(content[:4096].removeprefix(BYTE_ORDER_MARK)):
        raise _format_problem(path, "XML", "extract its text")
    recognition = recognize_text(path, content)
    if recognition is not None:
        raise RecipeProblem(recognition.message, next_step=recognition.next_step)
    for magic, name, next_step in FILE_SIGNATURES:
        if content.startswith(magic):
            raise _format_problem(path, name, next_step)


def require_prose(path: Path, text: str) -> None:
    """Checks that a text is not blank, a table or a Python literal.

    Raises:
        RecipeProblem: The text is one of these.
    """
    if not text.strip():
        raise empty_text_problem(path)
    if PYTHON_LITERAL.match(text):
        raise _format_problem(path, "a Python literal, not JSON", "write it with json.dumps")
    for separator, name, reader in SEPARATORS:
        if _looks_like_table(path, text, separator):
            raise _format_problem(path, f"{name}, a table", TABLE_ADVICE.format(reader))


def require_rows(path: Path, value: object, is_row: Callable[[Mapping[str, Any]], bool]) -> None:
    """Checks that the only JSON value of a file is not a pandas table without rows.

    Args:
        path: File, for messages.
        value: JSON value.
        is_row: Returns True for an object in a known row layout.
    Raises:
        RecipeProblem: The value is a table in another orientation.
    """
    orient = _orientation(value, is_row) if isinstance(value, Mapping) else ""
    if orient:
        raise RecipeProblem(
            f"{path} is a table in one object, in the order {orient!r} of pandas, without rows",
            next_step="convert it to JSON lines: "
            + PANDAS.format(f"json(FILE, orient={orient!r}, dtype=False)"),
        )


def _orientation(table: Mapping[str, Any], is_row: Callable[[Mapping[str, Any]], bool]) -> str:
    """Returns the pandas orientation of a table; "" for any other object."""
    if {"columns", "data"} <= table.keys():
        return "split"
    columns = list(table.values())
    labels = {_value_labels(column) for column in columns}
    if not all(labels) or len(labels) != 1 or not (is_row(table) or len(columns) > 1):
        return ""
    return "index" if all(key.isdecimal() for key in table) else "columns"


def _value_labels(column: object) -> tuple[Any, ...]:
    """Returns the labels of the values in a column; empty for any other value.

    A list of objects holds the turns of a conversation and is not a column.
    """
    if isinstance(column, Mapping):
        return tuple(column)
    if not isinstance(column, list) or all(isinstance(value, Mapping) for value in column):
        return ()
    return tuple(range(len(column)))


def _looks_like_table(path: Path, text: str, separator: str) -> bool:
    """Returns True if the file name, the header or the tabs of a text show a table."""
    if content_suffix(path) == {",": ".csv", "\t": ".tsv"}.get(separator):
        return True
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if _is_header(lines[0], separator):
        return 2 * sum(separator in line for line in lines) > len(lines) > 1
    counts = {line.count(separator) for line in lines}
    return separator == "\t" and len(lines) >= TABS_LINES and len(counts) == 1 and counts != {0}


def _is_header(line: str, separator: str) -> bool:
    """Returns True if a line lists column names, one of them common in data sets."""
    names = [name.strip().strip('"').casefold() for name in line.split(separator)]
    are_plain = all(name.replace(" ", "_").isidentifier() and len(name) < 40 for name in names)
    return are_plain and len(names) > 1 and not COLUMN_NAMES.isdisjoint(names)


def content_suffix(path: Path) -> str:
    """Returns the suffix of a file name in lower case, without a final ".gz"."""
    name = PurePath(path.name.casefold())
    return (name.with_suffix("") if name.suffix == ".gz" else name).suffix


def empty_text_problem(path: Path) -> RecipeProblem:
    """Returns the problem of a file without any text."""
    return RecipeProblem(f"{path} holds no text", next_step="give a file that does")


def _format_problem(path: Path, name: str, next_step: str) -> RecipeProblem:
    return RecipeProblem(f"{path} is {name}, and no text", next_step=next_step)
