"""JSON files: read with every fault named, written the one way this project does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from camelpress.core.errors import CheckpointProblem


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointProblem: the file is missing, not JSON, not an object, or says a thing twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if text.startswith("\ufeff"):
            raise CheckpointProblem(
                f"{path} begins with a byte order mark, which other programs refuse",
                next_step="save it as UTF-8 without the mark",
            )
        content = parse_json(text)
    except FileNotFoundError as error:
        raise CheckpointProblem(
            f"{path} does not exist", next_step="complete the checkpoint folder"
        ) from error
    except OSError as error:
        raise CheckpointProblem(
            f"{path} cannot be read ({error.strerror})", next_step="complete the checkpoint folder"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointProblem(
            f"{path} is not valid JSON ({error})", next_step="download it again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointProblem(f"{path} is not a JSON object", next_step="download it again")
    return content


def parse_json(text: str | bytes) -> Any:
    """JSON in which no object has a key twice; the library would silently keep the last.

    Raises:
        ValueError: it is not JSON, or a key stands there twice.
    """
    return json.loads(text, object_pairs_hook=_unique)


def write_json(path: Path, content: object) -> None:
    """Write JSON the one way this project does: two blanks, UTF-8, a newline at the end.

    Half a surrogate pair, which UTF-8 cannot hold, stays the escape that JSON has for it.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands there twice")
    return found
