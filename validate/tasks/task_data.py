"""Where the items of a benchmark lie, and each fault of a file told with its place in it.

The folders are those that the evaluation of allenai/open-instruct e44fcf588 read (`data/eval`).
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
Splits = dict[str, Any]  # a `datasets.Dataset` by name, which need not be installed here
DATA_VARIABLE = "CAMELPRESS_DATA"  # the variable that names the folder above `eval`
REPAIR_STEP = "download it again, or mend that row"


class HubDataset(NamedTuple):
    """A data set on the Hugging Face hub."""

    id: str
    config: str
    split: str


# fmt: off
DATA_ORIGINS = {  # by the folder
    "mmlu":            "the archive data.tar of hendrycks/test (files dev/ and test/)",
    "gsm":             "grade_school_math/data of openai/grade-school-math on GitHub",
    "bbh":             "bbh/ and cot-prompts/ of suzgunmirac/BIG-Bench-Hard on GitHub",
    "tydiqa":          "TyDiQA GoldP v1.1 of google-research-datasets/tydiqa",
    "codex_humaneval": "data/HumanEval.jsonl.gz of openai/human-eval on GitHub",
    "alpaca_farm":     "auto_annotations/annotators/greedy_gpt4 of hamishivi/alpaca_farm on GitHub",
}
# fmt: on


def data_folder(data_dir: str | None) -> Path | None:
    """The folder of the data: as given, or `eval` in the one that CAMELPRESS_DATA names."""
    if data_dir is not None:
        return Path(data_dir)
    named = os.environ.get(DATA_VARIABLE)
    return Path(named) / "eval" if named else None


def find_data_file(name: str, data_dir: str | None) -> Path:
    """A file or folder of the data.

    Args:
        name: below the data folder, such as `gsm/test.jsonl`.
        data_dir: as for `folder`.
    Raises:
        DataProblem: it is not there; says where it comes from.
    """
    below = data_folder(data_dir)
    origin = DATA_ORIGINS[name.split("/")[0]]
    if below is None:
        raise DataProblem(
            f"no folder is named that {name} could lie in; it comes from {origin}",
            next_step=f"give --data-dir, or set {DATA_VARIABLE} to the folder above eval/",
        )
    path = below / name
    if not path.exists():
        raise DataProblem(
            f"{path} is not there; it comes from {origin}",
            next_step="put it there, or name another folder with --data-dir",
        )
    return path


def read_task_rows(
    name: str, data_dir: str | None, hub: HubDataset
) -> Iterator[tuple[str, TaskRow]]:
    """The rows of a file of JSON lines, or of the data set on the hub where no folder is named.

    Raises:
        DataProblem: neither can be had, or a line is no JSON object.
    """
    if data_folder(data_dir) is None:
        yield from read_hub_rows(hub)
    else:
        yield from read_json_lines(find_data_file(name, data_dir))


def read_hub_rows(hub: HubDataset) -> Iterator[tuple[str, TaskRow]]:
    """The rows of a data set on the Hugging Face hub, each with its place.

    Raises:
        DataProblem: it cannot be had.
    """
    from datasets import load_dataset

    from camelpress.core.hub.hub_download import prepare_client

    prepare_client()
    try:
        found = load_dataset(hub.id, hub.config, split=hub.split)
    except (OSError, ValueError, LookupError) as error:
        raise DataProblem(
            f"no folder of data is named, and {hub.id} cannot be had from the hub "
            f"({type(error).__name__})",
            next_step=f"give --data-dir, set {DATA_VARIABLE} to the folder above eval/, or connect",
        ) from error
    for number, row in enumerate(found):
        yield f"{hub.id} {hub.config} {hub.split}[{number}]", row


def read_task_text(path: Path) -> str:
    """Returns the text of a file, which may be compressed by gzip.

    Raises:
        DataProblem: the file cannot be read, is not UTF-8, or is larger than
            `MAX_TASK_DATA_BYTES`, which counts after decompression.
    """
    try:
        with open_regular(path) as file:
            unpacked = gzip.open(file) if path.suffix == ".gz" else file
            content = unpacked.read(MAX_TASK_DATA_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise _unreadable(path, reason) from error
    if len(content) > MAX_TASK_DATA_BYTES:
        raise _unreadable(path, f"it holds more than {MAX_TASK_DATA_BYTES:,} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _unreadable(path, "it is not UTF-8") from error


def _unreadable(path: Path, reason: str) -> DataProblem:
    return DataProblem(f"{path} cannot be read as text ({reason})", next_step="download it again")


def read_json_lines(path: Path) -> Iterator[tuple[str, TaskRow]]:
    """The rows of a file of JSON lines, each with its place.

    Raises:
        DataProblem: a line is no JSON object.
    """
    for number, line in enumerate(read_task_text(path).split("\n"), start=1):
        if line.strip():
            place = f"{path}:{number}"
            yield place, require_type(_parsed(line, place), dict, place)


def read_json_object(path: Path) -> TaskRow:
    """A file that is one JSON object.

    Raises:
        DataProblem: it is none.
    """
    return require_type(_parsed(read_task_text(path), str(path)), dict, str(path))


def read_json_list(path: Path) -> Iterator[tuple[str, TaskRow]]:
    """The rows of a file that is one JSON list of objects, each with its place.

    Raises:
        DataProblem: it is none.
    """
    for number, row in enumerate(
        require_type(_parsed(read_task_text(path), str(path)), list, str(path))
    ):
        place = f"{path}[{number}]"
        yield place, require_type(row, dict, place)


def read_csv_rows(path: Path, width: int) -> Iterator[tuple[str, list[str]]]:
    """The records of a CSV file without a header, each with the place where it ends.

    Raises:
        DataProblem: a record has another number of fields, or a quote is not closed.
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
    """What stands under a key.

    Raises:
        DataProblem: nothing, or something of another kind.
    """
    if key not in row:
        raise DataProblem(f"{place} has no {key!r}", next_step=REPAIR_STEP)
    return require_type(row[key], kind, f"{key!r} in {place}")


def require_type(value: object, kind: type[FieldT], place: str) -> FieldT:
    """A value that must be of a kind.

    Raises:
        DataProblem: it is not.
    """
    if not isinstance(value, kind):
        raise DataProblem(
            f"{place} is a {type(value).__name__} instead of a {kind.__name__}",
            next_step=REPAIR_STEP,
        )
    return value


def make_test_split(rows: Sequence[TaskRow], name: str) -> Splits:
    """Items as lm-evaluation-harness takes them from a task.

    Raises:
        DataProblem: there are none.
    """
    from datasets import Dataset

    if not rows:
        raise DataProblem(f"{name} holds no items", next_step="download it again")
    return {"test": Dataset.from_list([dict(row) for row in rows])}


def load_task_tokenizer(tokenizer: str | None, pretrained: str | None) -> Tokenizer:
    """The tokenizer of the model that is asked, by which prompts are cut.

    Args:
        tokenizer, pretrained: what lm-evaluation-harness tells a task of the model; a folder.
    Raises:
        DataProblem: neither is given.
    """
    folder = tokenizer or pretrained
    if folder is None:
        raise DataProblem(
            "this task cuts its prompts by the model's tokenizer, and none is named",
            next_step='give lm_eval --metadata \'{"tokenizer": "FOLDER"}\'',
        )
    return Tokenizer.load(Path(folder))


def _parsed(text: str, place: str) -> object:
    try:
        return parse_json(text)
    except ValueError as error:
        raise DataProblem(f"{place} is not valid JSON ({error})", next_step=REPAIR_STEP) from error
