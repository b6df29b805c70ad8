"""Verdicts on disk: each is kept when it comes, and nobody is asked for it again.

A file of JSON lines, or AlpacaEval's JSON list; the fields have AlpacaEval's names:
instruction, output_1, output_2, preference (1, 2, or 1.5 for neither; null: no verdict), annotator.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from camelpress.core.errors import OutputProblem, RecipeProblem
from camelpress.core.files.json_files import parse_json
from camelpress.core.files.regular_files import read_regular
from camelpress.core.input_limits import MAX_JSON_BYTES

AnnotationKey = tuple[str, str, str]
REPAIR_ADVICE = "mend or leave out that row"


class AnnotationFile:
    """The preferences of one judge, by instruction and outputs in their order.

    Args:
        path: may be missing; only a file of JSON lines can grow. None to keep nothing.
        judge: whose verdicts count; None: those of anyone, if they are one judge's.
    Raises:
        RecipeProblem: the file cannot be read, a row is malformed, or there are several judges.
    """

    def __init__(self, path: Path | None, judge: str | None) -> None:
        self.path = path
        self.judge = judge
        self._found: dict[AnnotationKey, float] = {}
        self._cut: int | None = None
        if path is not None:
            self._read(path)

    def __len__(self) -> int:
        return len(self._found)

    def _read(self, path: Path) -> None:
        judge, content = self.judge, _read_annotation_bytes(path)
        whole = len(content) if path.suffix == ".json" else content.rfind(b"\n") + 1
        self._cut = whole if whole < len(content) else None  # where a kill cut the last line short
        names = set()
        for row in _rows(path, content[:whole]):
            name = str(row.get("annotator", ""))
            if judge in (None, name) and row["preference"] is not None:
                names.add(name)
                self._found[_key(row)] = float(row["preference"])
        if len(names) > 1:
            raise RecipeProblem(
                f"{path} holds the verdicts of {len(names)} judges ({', '.join(sorted(names))})",
                next_step="give a file with those of one",
            )
        if judge is None:
            self.judge = next(iter(names), None)

    def preference(self, key: AnnotationKey) -> float | None:
        """1 if the first output is better, 2 if the second, 1.5 if neither; None if unknown."""
        return self._found.get(key)

    def require_appendable(self) -> None:
        """See that verdicts can be added, before they are paid for.

        Raises:
            OutputProblem: they cannot.
        """
        if self.path is not None and self.path.suffix == ".json":
            raise OutputProblem(
                f"{self.path} is a list, to which nothing can be added",
                next_step="name a file that ends in .jsonl for the annotations",
            )
        if self.path is not None and not self.path.parent.is_dir():
            raise OutputProblem(
                f"{self.path.parent} is not a folder", next_step="make it, or name another file"
            )

    def add(self, key: AnnotationKey, preference: float, **more: Any) -> None:
        """Keep a verdict.

        Raises:
            OutputProblem: the file cannot be written.
        """
        self._found[key] = preference
        if self.path is None:
            return
        names = ("instruction", "output_1", "output_2")
        row = dict(zip(names, key, strict=True))
        line = json.dumps({**row, "preference": preference, "annotator": self.judge, **more})
        try:
            with self.path.open("ab") as file:
                if self._cut is not None:
                    file.truncate(self._cut)
                file.write(line.encode() + b"\n")
            self._cut = None
        except OSError as error:
            raise OutputProblem(
                f"{self.path} cannot be written: {os.strerror(error.errno or 0)}",
                next_step="free some space, or name another file for the annotations",
            ) from error


def _read_annotation_bytes(path: Path) -> bytes:
    try:
        return read_regular(path, MAX_JSON_BYTES)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise RecipeProblem(
            f"{path} cannot be read ({error.strerror})", next_step="name a file of annotations"
        ) from error


def _rows(path: Path, content: bytes) -> Iterator[Mapping[str, Any]]:
    if not content:
        return
    if path.suffix == ".json":
        rows = _parse_annotation(str(path), content)
        if not isinstance(rows, list):
            raise RecipeProblem(f"{path} is not a JSON list", next_step="give a list of rows")
        for number, row in enumerate(rows):
            yield _require_annotation(f"{path}[{number}]", row)
        return
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            yield _require_annotation(
                f"{path}:{number}", _parse_annotation(f"{path}:{number}", line)
            )


def _parse_annotation(place: str, content: bytes) -> Any:
    try:
        return parse_json(content)
    except (ValueError, RecursionError) as error:
        raise RecipeProblem(
            f"{place} is not valid JSON ({error})", next_step=REPAIR_ADVICE
        ) from error


def _require_annotation(place: str, row: Any) -> Mapping[str, Any]:
    if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in
                                            ("instruction", "output_1", "output_2")):  # fmt: skip
        raise RecipeProblem(
            f"{place} has no instruction, output_1 and output_2", next_step=REPAIR_ADVICE
        )
    preference = row.get("preference")
    if preference == 0:
        preference = 1.5  # as AlpacaFarm writes a draw
    is_one = isinstance(preference, int | float) and 1 <= preference <= 2
    if is_one or (preference is None and "preference" in row):
        return {**row, "preference": preference}
    raise RecipeProblem(
        f"{place} has the preference {preference!r}, which is none of 1 to 2",
        next_step=REPAIR_ADVICE,
    )


def _key(row: Mapping[str, Any]) -> AnnotationKey:
    added = f"\n\n{row['input']}" if row.get("input") else ""
    return (row["instruction"] + added, row["output_1"], row["output_2"])
