"""Reads JSON files strictly and writes them in one fixed form."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from camelpress.core.errors import CheckpointProblem
from camelpress.core.files.file_recognizer import unreadable_file_problem
from camelpress.core.files.folder_recognizer import missing_file_problem
from camelpress.core.files.regular_files import read_regular
from camelpress.core.input_limits import MAX_JSON_BYTES, MAX_JSON_DEPTH, MAX_JSON_VALUES


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Args:
        path: JSON file.
        max_bytes: Largest accepted size in bytes.
    Raises:
        CheckpointProblem: The file is missing, too large, not JSON, not an object, or has a
            duplicate key.
    """
    try:
        text = read_regular(path, max_bytes).decode("utf-8")
        if text.startswith("\ufeff"):
            raise CheckpointProblem(
                f"{path} begins with a byte order mark, which other programs refuse",
                next_step="save it as UTF-8 without the mark",
            )
        content = parse_json(text)
    except FileNotFoundError as error:
        raise missing_file_problem(path) from error
    except OSError as error:
        raise CheckpointProblem(
            f"{path} cannot be read ({error.strerror})", next_step="complete the checkpoint folder"
        ) from error
    except ValueError as error:
        raise unreadable_file_problem(path, f"{path} is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointProblem(f"{path} is not a JSON object", next_step="download it again")
    return content


def parse_json(text: str | bytes) -> Any:
    """Parses a JSON text of bounded size and depth.

    Duplicate keys are refused, since the library silently keeps the last one. NaN and infinite
    numbers are refused as invalid JSON.

    Raises:
        ValueError: The text is invalid JSON or exceeds a bound.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    if sum(map(text.count, ",[{")) > MAX_JSON_VALUES:
        raise ValueError(f"it has more than {MAX_JSON_VALUES:,} values")
    try:
        content = json.loads(
            text,
            object_pairs_hook=require_unique_keys,
            parse_constant=_parse_finite,
            parse_float=_parse_finite,
        )
    except RecursionError as error:
        raise ValueError(f"it is nested deeper than {MAX_JSON_DEPTH} levels") from error
    _require_shallow(content)
    return content


def write_json(path: Path, content: object) -> None:
    """Writes JSON in UTF-8, indented by two spaces, with a newline at the end.

    Half of a surrogate pair is written as a JSON escape, since UTF-8 cannot encode it.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def require_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Builds an object from its pairs; raises ValueError for a key that appears twice."""
    content = dict(pairs)
    if len(content) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        key, _ = counts.most_common(1)[0]
        raise ValueError(f"the key {key!r} appears twice")
    return content


def _parse_finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def _require_shallow(content: object) -> None:
    """Raises ValueError if lists and objects are nested deeper than `MAX_JSON_DEPTH` levels."""
    values = [content]  # all lists and objects of one level
    for _ in range(MAX_JSON_DEPTH + 1):
        values = [inner for value in values for inner in _containers(value)]
        if not values:
            return
    raise ValueError(f"it is nested deeper than {MAX_JSON_DEPTH} levels")


def _containers(outer: object) -> list[object]:
    values = outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ()
    return [value for value in values if isinstance(value, (dict, list))]
