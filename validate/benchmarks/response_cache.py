"""What a model has answered, so that it is not asked again: by model, task and request.

lm-evaluation-harness has such a store of its own, whose keys do not name the model: there a second
model gets the answers of the first. It is never used here.
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
    """Tells whether an answer is a log-probability and whether each token is the likeliest."""
    return (
        isinstance(answer, list)
        and len(answer) == 2
        and _is_number(answer[0])
        and isinstance(answer[1], bool)
    )


RESPONSE_CHECKS: Mapping[
    str, Callable[[object], bool]
] = {  # type of request: test of an answer's form
    "loglikelihood": _is_loglikelihood,
    "loglikelihood_rolling": _is_number,
    "generate_until": lambda answer: isinstance(answer, str),
}


class ResponseCache:
    """Answers of one model, in memory, and in a file that grows line by line where one is named.

    Args:
        model: what the answers depend on besides the request: hash of the model, type and place
            of the computation.
        folder: of the files, one for each model; None to keep nothing.
    Raises:
        OutputProblem: the file cannot be written.
    """

    def __init__(self, model: Mapping[str, str], folder: Path | None) -> None:
        self._found: dict[str, Any] = {}
        self._model = sha256_json(dict(model))
        self._path = None if folder is None else folder / f"{self._model}.jsonl"
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch()
            for line in self._path.read_bytes().splitlines():
                self._found |= _parse_cache_line(line)
            self._write("\n")  # ends a line that a kill cut short
        except OSError as error:
            raise OutputProblem(
                f"{self._path} cannot be written ({error.strerror})",
                next_step="name another folder with --answers",
            ) from error

    def key(self, task: str | None, request: object) -> str:
        """What a request is known by."""
        return sha256_json([self._model, task, request])

    def has(self, key: str, request_type: str) -> bool:
        """Tells whether an answer is kept that has the form of this type of request.

        A file of answers can come from anywhere; what has another form is asked again.
        """
        return key in self._found and RESPONSE_CHECKS[request_type](self._found[key])

    def __getitem__(self, key: str) -> Any:
        return self._found[key]

    def add(self, key: str, answer: Any) -> None:
        """Keep an answer of plain data."""
        self._found[key] = answer
        if self._path:
            self._write(json.dumps({key: answer}) + "\n")

    def _write(self, line: str) -> None:
        if self._path:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line)


def _parse_cache_line(line: bytes) -> dict[str, Any]:
    try:
        found = parse_json(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
