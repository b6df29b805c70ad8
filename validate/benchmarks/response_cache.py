"""Stores the answers of a model by model, task and request.

The cache of lm-evaluation-harness is not used: its keys omit the model, so a second model would
get the answers of the first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from camelpress.core.errors import OutputProblem
from camelpress.core.files.file_hashes import sha256_json
from camelpress.core.files.json_files import parse_json


def _is_number(answer: object) -> bool:
    return isinstance(answer, float | int) and not isinstance(answer, bool) and isfinite(answer)


def _is_loglikelihood(answer: object) -> bool:
    """Returns True for a pair of log-probability and greedy match."""
    return (
        isinstance(answer, list)
        and len(answer) == 2
        and _is_number(answer[0])
        and isinstance(answer[1], bool)
    )


# request type: validity test of an answer
RESPONSE_CHECKS: Mapping[str, Callable[[object], bool]] = {
    "loglikelihood": _is_loglikelihood,
    "loglikelihood_rolling": _is_number,
    "generate_until": lambda answer: isinstance(answer, str),
}


class ResponseCache:
    """The answers of one model, in memory and optionally in a file of JSON lines.

    Args:
        model: identity of the answers: model hash, dtype and device.
        folder: folder with one file per model; None keeps answers in memory only.
    Raises:
        OutputProblem: The file cannot be written.
    """

    def __init__(self, model: Mapping[str, str], folder: Path | None) -> None:
        self._answers: dict[str, Any] = {}
        self._model = sha256_json(dict(model))
        self._path = None if folder is None else folder / f"{self._model}.jsonl"
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch()
            for line in self._path.read_bytes().splitlines():
                self._answers |= _parse_cache_line(line)
            self._write("\n")  # ends a line cut short by a kill
        except OSError as error:
            raise OutputProblem(
                f"{self._path} cannot be written ({error.strerror})",
                next_step="give another folder with --answers",
            ) from error

    def key(self, task: str | None, request: object) -> str:
        """Returns the cache key of a request."""
        return sha256_json([self._model, task, request])

    def has(self, key: str, request_type: str) -> bool:
        """Returns True for a stored answer in the form of the request type.

        A file of answers can come from anywhere; an answer in another form is requested again.
        """
        return key in self._answers and RESPONSE_CHECKS[request_type](self._answers[key])

    def __getitem__(self, key: str) -> Any:
        return self._answers[key]

    def add(self, key: str, answer: Any) -> None:
        """Stores an answer of plain data."""
        self._answers[key] = answer
        if self._path:
            self._write(json.dumps({key: answer}) + "\n")

    def _write(self, line: str) -> None:
        if self._path:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line)


def _parse_cache_line(line: bytes) -> dict[str, Any]:
    try:
        answers = parse_json(line)
    except ValueError:
        return {}
    return answers if isinstance(answers, dict) else {}
