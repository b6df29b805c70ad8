"""Reads the data of benchmarks, and reports faults with file and line.

The folder layout is that of the evaluation of allenai/open-instruct e44fcf588 (`data/eval`).
"""

from __future__ import annotations

import csv
import gzip
import io
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from camelpress.core.errors import DataProblem
from camelpress.core.files.json_files import parse_json
from camelpress.core.files.regular_files import open_regular
from camelpress.core.input_limits import MAX_TASK_DATA_BYTES
from camelpress.core.text.hf_tokenizer import Tokenizer

FieldT = TypeVar("FieldT")
TaskRow = Mapping[str, Any]
Splits = dict[str, Any]  # `datasets.Dataset` by name; an optional package
DATA_VARIABLE = "CAMELPRESS_DATA"  # environment variable for the folder above `eval`
REPAIR_STEP = "download it again, or correct that row"


class HubDataset(NamedTuple):
    """A data set on the Hugging Face Hub."""

    id: str
    config: str
    split: str


# fmt: off
DATA_ORIGINS = {  # source of each folder
    "mmlu":            "the archive data.tar of hendrycks/test (files dev/ and test/)",
    "gsm":             "grade_school_math/data of openai/grade-school-math on GitHub",
    "bbh":             "bbh/ and cot-prompts/ of suzgunmirac/BIG-Bench-Hard on GitHub",
    "tydiqa":          "TyDiQA GoldP v1.1 of google-research-datasets/tydiqa",
    "codex_humaneval": "data/HumanEval.jsonl.gz of openai/human-eval on GitHub",
    "alpaca_farm":     "auto_annotations/annotators/greedy_gpt4 of hamishivi/alpaca_farm on GitHub",
}
# fmt: on


def data_folder(data_dir: str | None) -> Path | None:
    """Returns `data_dir`, or the folder `eval` in CAMELPRESS_DATA, or None."""
    if data_dir is not None:
        return Path(data_dir)
    parent = os.environ.get(DATA_VARIABLE)
    return Path(parent) / "eval" if parent else None


def find_data_file(name: str, data_dir: str | None) -> Path:
    """Returns the path of a file or folder of the data.

    Args:
        name: path below the data folder, such as `gsm/test.jsonl`.
        data_dir: folder of the data; None for the folder from CAMELPRESS_DATA.
    Raises:
        DataProblem: The path does not exist; the message names its source.
    """
    folder = data_folder(data_dir)
    origin = DATA_ORIGINS[name.split("/")[0]]
    if folder is None:
        raise DataProblem(
            f"no data folder is set for {name}; it comes from {origin}",
            next_step=f"give --data-dir, or set {DATA_VARIABLE} to the folder above eval/",
        )
    path = folder / name
    if not path.exists():
        raise DataProblem(
            f"{path} does not exist; it comes from {origin}",
            next_step="put it there, or give another folder with --data-dir",
        )
    return path


def read_task_rows(
    name: str, data_dir: str | None, hub: HubDataset
) -> Iterator[tuple[str, TaskRow]]:
    """Yields place and row from a file of JSON lines, or from the Hub without a data folder.

    Raises:
        DataProblem: The data cannot be read, or a line is not a JSON object.
    """
    if data_folder(data_dir) is None:
        yield from read_hub_rows(hub)
    else:
        yield from read_json_lines(find_data_file(name, data_dir))


def read_hub_rows(hub: HubDataset) -> Iterator[tuple[str, TaskRow]]:
    """Yields place and row of a data set on the Hugging Face Hub.

    Raises:
        DataProblem: The data set cannot be loaded.
    """
    from datasets import load_dataset

    from camelpress.core.hub.hub_download import prepare_client

    prepare_client()
    try:
        rows = load_dataset(hub.id, hub.config, split=hub.split)
    except (OSError, ValueError, LookupError) as error:
        raise DataProblem(
            f"no data folder is set, and {hub.id} cannot be loaded from the Hub "
            f"({type(error).__name__})",
            next_step=f"give --data-dir, set {DATA_VARIABLE} to the folder above eval/, or connect",
        ) from error
    for number, row in enumerate(rows):
        yield f"{hub.id} {hub.config} {hub.split}[{number}]", row


def read_task_text(path: Path) -> str:
    """Reads a text file, plain or gzip-compressed.

    Raises:
        DataProblem: The file cannot be read, is not UTF-8, or is larger than
            `MAX_TASK_DATA_BYTES` after decompression.
    """
    try:
        with open_regular(path) as file:
            stream = gzip.open(file) if path.suffix == ".gz" else file
            content = stream.read(MAX_TASK_DATA_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise _unreadable_text(path, reason) from error
    if len(content) > MAX_TASK_DATA_BYTES:
        raise _unreadable_text(path, f"it holds more than {MAX_TASK_DATA_BYTES:,} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _unreadable_text(path, "it is not UTF-8") from error


def _unreadable_text(path: Path, reason: str) -> DataProblem:
    return DataProblem(f"{path} cannot be read as text ({reason})", next_step="download it again")


def read_json_lines(path: Path) -> Iterator[tuple[str, TaskRow]]:
    """Yields place and row of a file of JSON lines.

    Raises:
        DataProblem: A line is not a JSON object.
    """
    for number, line in enumerate(read_task_text(path).split("\n"), start=1):
        if line.strip():
            place = f"{path}:{number}"
            yield place, require_type(_parse_json_at(line, place), dict, place)


def read_json_object(path: Path) -> TaskRow:
    """Reads a file with one JSON object.

    Raises:
        DataProblem: The content is not a JSON object.
    """
    return require_type(_parse_json_at(read_task_text(path), str(path)), dict, str(path))


def read_json_list(path: Path) -> Iterator[tuple[str, TaskRow]]:
    """Yields place and row of a file with one JSON list of objects.

    Raises:
        DataProblem: The content is not a list of objects.
    """
    for number, row in enumerate(
        require_type(_parse_json_at(read_task_text(path), str(path)), list, str(path))
    ):
        place = f"{path}[{number}]"
        yield place, require_type(row, dict, place)


def read_csv_rows(path: Path, width: int) -> Iterator[tuple[str, list[str]]]:
    """Yields records of a CSV file without a header, each with the place of its last line.

    Args:
        path: the CSV file.
        width: number of fields of a record.
    Raises:
        DataProblem: A record has another number of fields, or an unclosed quote.
    """
    reader = csv.reader(io.StringIO(read_task_text(path), newline=""), strict=True)
    while True:
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise DataProblem(
                f"{path}:{reader.line_num}: {error}", next_step=REPAIR_STEP
            ) from error
        if record is None:
            return
        place = f"{path}:{reader.line_num}"
        if len(record) != width:
            raise DataProblem(
                f"{place} has {len(record)} fields instead of {width}", next_step=REPAIR_STEP
            )
        yield place, record


def read_field(row: TaskRow, key: str, kind: type[FieldT], place: str) -> FieldT:
    """Returns the value of a key after a type check.

    Args:
        row: a row of the data.
        key: name of the field.
        kind: expected type.
        place: file and line for error messages.
    Raises:
        DataProblem: The key is missing, or its value has another type.
    """
    if key not in row:
        raise DataProblem(f"{place} has no {key!r}", next_step=REPAIR_STEP)
    return require_type(row[key], kind, f"{key!r} in {place}")


def require_type(value: object, kind: type[FieldT], place: str) -> FieldT:
    """Returns a value after a type check.

    Raises:
        DataProblem: The value has another type.
    """
    if not isinstance(value, kind):
        raise DataProblem(
            f"{place} is a {type(value).__name__} instead of a {kind.__name__}",
            next_step=REPAIR_STEP,
        )
    return value


def make_test_split(rows: Sequence[TaskRow], name: str) -> Splits:
    """Converts rows to the split `test` for lm-evaluation-harness.

    Raises:
        DataProblem: There are no rows.
    """
    from datasets import Dataset

    if not rows:
        raise DataProblem(f"{name} holds no items", next_step="download it again")
    return {"test": Dataset.from_list([dict(row) for row in rows])}


def load_task_tokenizer(tokenizer: str | None, pretrained: str | None) -> Tokenizer:
    """Loads the model's tokenizer for truncating prompts.

    Args:
        tokenizer, pretrained: folder of the tokenizer, from the metadata of
            lm-evaluation-harness; `tokenizer` takes precedence.
    Raises:
        DataProblem: Both are None.
    """
    folder = tokenizer or pretrained
    if folder is None:
        raise DataProblem(
            "this task truncates prompts with the model's tokenizer, and none is set",
            next_step='give lm_eval --metadata \'{"tokenizer": "FOLDER"}\'',
        )
    return Tokenizer.load(Path(folder))


def _parse_json_at(text: str, place: str) -> object:
    try:
        return parse_json(text)
    except ValueError as error:
        raise DataProblem(f"{place} is not valid JSON ({error})", next_step=REPAIR_STEP) from error
