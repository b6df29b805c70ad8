"""Stores a judge's verdicts on disk, so a verdict is never requested twice.

The file has JSON lines, or is AlpacaEval's JSON list. The fields have AlpacaEval's names:
instruction, output_1, output_2, preference (1, 2, or 1.5 for a tie; null: no verdict), annotator.
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
REPAIR_ADVICE = "correct or remove that row"


class AnnotationFile:
    """The preferences of one judge, keyed by instruction and ordered outputs.

    Args:
        path: the file, which may not exist yet; only JSON lines are appendable. None keeps the
            verdicts in memory only.
        judge: name of the judge. None accepts the verdicts of any single judge.
    Raises:
        RecipeProblem: The file cannot be read, a row is malformed, or there are several judges.
    """

    def __init__(self, path: Path | None, judge: str | None) -> None:
        self.path = path
        self.judge = judge
        self._preferences: dict[AnnotationKey, float] = {}
        self._truncate_at: int | None = None
        if path is not None:
            self._read(path)

    def __len__(self) -> int:
        return len(self._preferences)

    def _read(self, path: Path) -> None:
        judge, content = self.judge, _read_annotation_bytes(path)
        complete_bytes = len(content) if path.suffix == ".json" else content.rfind(b"\n") + 1
        # start of a line cut short by a kill
        self._truncate_at = complete_bytes if complete_bytes < len(content) else None
        names = set()
        for row in _rows(path, content[:complete_bytes]):
            name = str(row.get("annotator", ""))
            if judge in (None, name) and row["preference"] is not None:
                names.add(name)
                self._preferences[_key(row)] = float(row["preference"])
        if len(names) > 1:
            raise RecipeProblem(
                f"{path} holds the verdicts of {len(names)} judges ({', '.join(sorted(names))})",
                next_step="give a file with the verdicts of one judge",
            )
        if judge is None:
            self.judge = next(iter(names), None)

    def preference(self, key: AnnotationKey) -> float | None:
        """Returns 1 or 2 for the better output, 1.5 for a tie, None for an unknown pair."""
        return self._preferences.get(key)

    def require_appendable(self) -> None:
        """Checks that the file accepts new verdicts, before they cost anything.

        Raises:
            OutputProblem: The file is a JSON list, or its folder does not exist.
        """
        if self.path is not None and self.path.suffix == ".json":
            raise OutputProblem(
                f"{self.path} is a JSON list, to which nothing can be added",
                next_step="name a file that ends in .jsonl for the annotations",
            )
        if self.path is not None and not self.path.parent.is_dir():
            raise OutputProblem(
                f"{self.path.parent} is not a folder", next_step="make it, or name another file"
            )

    def add(self, key: AnnotationKey, preference: float, **fields: Any) -> None:
        """Stores a verdict in memory and in the file.

        Args:
            key: instruction and both outputs, in the order shown.
            preference: 1, 2 or 1.5.
            **fields: further fields of the row, such as token counts.
        Raises:
            OutputProblem: The file cannot be written.
        """
        self._preferences[key] = preference
        if self.path is None:
            return
        names = ("instruction", "output_1", "output_2")
        row = dict(zip(names, key, strict=True))
        line = json.dumps({**row, "preference": preference, "annotator": self.judge, **fields})
        try:
            with self.path.open("ab") as file:
                if self._truncate_at is not None:
                    file.truncate(self._truncate_at)
                file.write(line.encode() + b"\n")
            self._truncate_at = None
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
            f"{path} cannot be read ({error.strerror})",
            next_step="give a readable file of annotations",
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
        preference = 1.5  # AlpacaFarm writes a draw as 0
    is_preference = isinstance(preference, int | float) and 1 <= preference <= 2
    if is_preference or (preference is None and "preference" in row):
        return {**row, "preference": preference}
    raise RecipeProblem(
        f"{place} has the preference {preference!r}, which is not between 1 and 2",
        next_step=REPAIR_ADVICE,
    )


def _key(row: Mapping[str, Any]) -> AnnotationKey:
    input_text = f"\n\n{row['input']}" if row.get("input") else ""
    return (row["instruction"] + input_text, row["output_1"], row["output_2"])
