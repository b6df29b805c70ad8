"""What differs between two releases, or two models: config, tensors, files and figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.files.file_hashes import checkpoint_digest, sha256_file
from camelpress.core.llama import is_derived_buffer
from camelpress.core.progress import note, track
from camelpress.publish.card.card_tables import QUANTIZATION_ROWS, TEXT_METRICS
from camelpress.publish.card.card_tables import VALIDATION_METRICS as MEASURED
from camelpress.publish.card.release_quotes import QUANTIZED
from camelpress.publish.release.model_files import VALIDATION_FOLDER
from camelpress.reporting.lineage import describes, foreign_report
from camelpress.reporting.quoted_values import format_quoted, text_facts, value_at
from camelpress.reporting.stage_report import Report, Stopwatch, Verdict
from camelpress.reporting.tables.benchmark_tables import BENCHMARK_METRICS, benchmark_facts

WEIGHT_SUFFIXES = (".safetensors", ".bin")
COMPARED_VALUES = 1 << 22  # values that are compared at a time


def diff_releases(one: Path, other: Path) -> Report:
    """Everything that is not the same; what belongs to one of them only is told as `none`.

    Derived buffers are not compared: they follow from the config.

    Args:
        one, other: releases, or checkpoints without one.
    Returns:
        PASS where nothing differs, else FAIL with what does, by kind, under `differences`.
    Raises:
        CheckpointProblem: one of them is no checkpoint.
    """
    watch = Stopwatch()
    first, second = Checkpoint.open(one), Checkpoint.open(other)
    differences = {
        "config": list(_config_differences(dict(first.config), dict(second.config))),
        "tensors": list(_tensor_differences(first, second)),
        "figures": list(_metric_differences(one, other)),
        "files": list(_file_differences(one, other)),
    }
    same = not any(differences.values())
    return Report(
        stage="diff",
        inputs={"one": checkpoint_digest(one), "other": checkpoint_digest(other)},
        settings={},
        facts={"differences": differences},
        verdict=Verdict.PASS if same else Verdict.FAIL,
        cost=watch.cost(),
    )


def _config_differences(one: Any, other: Any, place: str = "") -> Iterator[str]:
    """Places in nested plain data with both values."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in sorted(one.keys() | other.keys()):
            yield from _config_differences(
                one.get(key), other.get(key), f"{place}.{key}".lstrip(".")
            )
    elif one != other:
        yield f"{place}: {one!r}, {other!r}"


def _tensor_differences(one: Checkpoint, other: Checkpoint) -> Iterator[str]:
    names = {*one.tensors, *other.tensors}
    for name in track(sorted(name for name in names if not is_derived_buffer(name)), "diff"):
        kinds = [
            f"{each.tensors[name].dtype} {list(each.tensors[name].shape)}"
            if name in each.tensors
            else "none"
            for each in (one, other)
        ]
        if kinds[0] != kinds[1]:
            yield f"{name}: {kinds[0]}, {kinds[1]}"
        elif count := _count_differences(one.read(name), other.read(name)):
            total = one.tensors[name].nbytes // one.tensors[name].dtype.itemsize
            yield f"{name}: {count:,} of {total:,} values"


def _count_differences(one: Tensor, other: Tensor) -> int:
    """Values whose bytes are not the same."""
    pieces = zip(
        one.reshape(-1).split(COMPARED_VALUES),
        other.reshape(-1).split(COMPARED_VALUES),
        strict=True,
    )
    return sum(int((_bytes(left) != _bytes(right)).any(dim=1).sum()) for left, right in pieces)


def _bytes(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.uint8).reshape(len(values), -1)


def _metric_differences(one: Path, other: Path) -> Iterator[str]:
    """What the reports measured and how the model was made, as the cards show it."""
    first, second = _labelled_metrics(_reports(one)), _labelled_metrics(_reports(other))
    for label in first | second:
        values = [format_quoted(told.get(label)) for told in (first, second)]
        if values[0] != values[1]:
            yield f"{label}: {values[0]}, {values[1]}"


def _labelled_metrics(reports: Mapping[str, Any]) -> dict[str, Any]:
    """Label to value of all figures: of the whole, of each text and of each benchmark."""
    found = {
        _neutral_label(row.label): value_at(reports, f"validate.facts.{row.fact}")
        for row in MEASURED
    }
    found |= {
        row.label: value_at(reports, f"{row.source}.{row.path}")
        for row in QUANTIZATION_ROWS
        if row.source != "config"
    }
    found["verdict"] = value_at(reports, "validate.verdict")
    facts = value_at(reports, "validate.facts") or {}
    for text in text_facts(facts):
        found |= {
            f"{format_quoted(value_at(text, 'name'))}, {_neutral_label(label)}": value_at(
                text, fact
            )
            for label, fact in TEXT_METRICS
        }
    for task in benchmark_facts(facts):
        found |= {
            f"{task['name']}, {_neutral_label(label)}": task.get(fact)
            for label, fact in BENCHMARK_METRICS
        }
    return found


def _neutral_label(label: str) -> str:
    """The label of a figure without the precision of the reference, which may be of two kinds."""
    return label.format(reference="reference")


def _reports(folder: Path) -> dict[str, Any]:
    """Returns the reports of a model as plain data, without those that are of other weights."""
    places = {
        "validate": folder / VALIDATION_FOLDER / "report.json",
        "quantize": folder / QUANTIZED,
    }
    reports = {name: Report.read_report(path) for name, path in places.items() if path.is_file()}
    if "quantize" in reports and not describes(reports["quantize"], folder):
        note(f"{foreign_report(folder / QUANTIZED)}: its figures are not compared")
        del reports["quantize"]
    return {name: report.model_dump(mode="json") for name, report in reports.items()}


def _file_differences(one: Path, other: Path) -> Iterator[str]:
    """Files besides the weights, which were compared tensor by tensor."""
    found = [_hashes(folder) for folder in (one, other)]
    for name in sorted(found[0].keys() | found[1].keys()):
        if name not in found[1]:
            yield f"{name}: only in the first"
        elif name not in found[0]:
            yield f"{name}: only in the second"
        elif found[0][name] != found[1][name]:
            yield f"{name}: other bytes"


def _hashes(folder: Path) -> dict[str, str]:
    paths = (
        path for path in folder.rglob("*") if path.is_file() and path.suffix not in WEIGHT_SUFFIXES
    )
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in sorted(paths)}
