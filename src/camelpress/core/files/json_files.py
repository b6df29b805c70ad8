"""JSON files: read with every fault named, written the one way this project does."""

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
    """Returns the JSON object that a file holds.

    Raises:
        CheckpointProblem: the file is missing, too large, not JSON, not an object, or has a key
            twice.
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
    """Returns the value of a JSON text of bounded size and depth.

    Objects with a key twice are refused, since the library silently keeps the last; so are NaN
    and infinite numbers, which JSON does not have.

    Raises:
        ValueError: the text is not such JSON.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    if sum(map(text.count, ",[{")) > MAX_JSON_VALUES:
        raise ValueError(f"it has more than {MAX_JSON_VALUES:,} values")
    try:
        content = json.loads(
            text,
            object_pairs_hook=_require_unique_keys,
            parse_constant=_parse_finite,
            parse_float=_parse_finite,
        )
    except RecursionError as error:
        raise ValueError(f"it is nested deeper than {MAX_JSON_DEPTH} levels") from error
    _require_shallow(content)
    return content


def write_json(path: Path, content: object) -> None:
    """Write JSON the one way this project does: two blanks, UTF-8, a newline at the end.

    Half a surrogate pair, which UTF-8 cannot hold, stays the escape that JSON has for it.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def _require_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        key, _ = counts.most_common(1)[0]
        raise ValueError(f"the key {key!r} stands there twice")
    return content


def _parse_finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def _require_shallow(content: object) -> None:
    """Raises ValueError where lists and objects are nested too deeply for those who walk them."""
    level = [content]
    for _ in range(MAX_JSON_DEPTH + 1):
        level = [value for outer in level for value in _containers(outer)]
        if not level:
            return
    raise ValueError(f"it is nested deeper than {MAX_JSON_DEPTH} levels")


def _containers(outer: object) -> list[object]:
    values = outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ()
    return [value for value in values if isinstance(value, (dict, list))]
