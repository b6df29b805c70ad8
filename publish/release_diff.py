"""Compares two releases or models: config, tensors, files and metrics."""

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
from camelpress.core.runtime.resource_usage import Stopwatch
from camelpress.publish.card.card_tables import card_text_values, card_values
from camelpress.publish.card.quantization_table import QUANTIZATION_ROWS, QuantizationSources
from camelpress.publish.card.release_quotes import QUANTIZED
from camelpress.publish.release.model_files import VALIDATION_FOLDER, read_stage_report
from camelpress.reporting.facts.release_facts import ReleaseDiffFacts
from camelpress.reporting.facts.validation_facts import ValidateFacts
from camelpress.reporting.lineage import describe_foreign_report, matches_weights
from camelpress.reporting.number_format import format_count, format_quoted
from camelpress.reporting.report_classes import QuantizeReport, ReleaseDiffReport, ValidationReport
from camelpress.reporting.tables.benchmark_tables import BENCHMARK_METRICS, benchmark_facts
from camelpress.reporting.verdict import Verdict

WEIGHT_SUFFIXES = (".safetensors", ".bin")
COMPARED_VALUES = 1 << 22  # values per comparison


def diff_releases(left: Path, right: Path) -> ReleaseDiffReport:
    """Compares two releases or checkpoints; a value on one side only is shown as `none`.

    Derived buffers are not compared, since they follow from the config.

    Args:
        left, right: folders of releases or checkpoints.
    Returns:
        PASS for equal models, else FAIL with the differences by kind under `differences`.
    Raises:
        CheckpointProblem: a folder is not a checkpoint.
    """
    watch = Stopwatch()
    left_model, right_model = Checkpoint.open(left), Checkpoint.open(right)
    differences = {
        "config": list(_config_differences(dict(left_model.config), dict(right_model.config))),
        "tensors": list(_tensor_differences(left_model, right_model)),
        "figures": list(_metric_differences(left, right)),
        "files": list(_file_differences(left, right)),
    }
    same = not any(differences.values())
    return ReleaseDiffReport(
        stage="diff",
        inputs={"one": checkpoint_digest(left), "other": checkpoint_digest(right)},
        settings={},
        facts=ReleaseDiffFacts.build({"differences": differences}),
        verdict=Verdict.PASS if same else Verdict.FAIL,
        cost=watch.cost(),
    )


def _config_differences(left: Any, right: Any, key_path: str = "") -> Iterator[str]:
    """Yields keys of nested plain data with both values."""
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        for key in sorted(left.keys() | right.keys()):
            yield from _config_differences(
                left.get(key), right.get(key), f"{key_path}.{key}".lstrip(".")
            )
    elif left != right:
        yield f"{key_path}: {left!r}, {right!r}"


def _tensor_differences(left: Checkpoint, right: Checkpoint) -> Iterator[str]:
    names = {*left.tensors, *right.tensors}
    for name in track(sorted(name for name in names if not is_derived_buffer(name)), "diff"):
        descriptions = [
            f"{checkpoint.tensors[name].dtype} {list(checkpoint.tensors[name].shape)}"
            if name in checkpoint.tensors
            else "none"
            for checkpoint in (left, right)
        ]
        if descriptions[0] != descriptions[1]:
            yield f"{name}: {descriptions[0]}, {descriptions[1]}"
        elif count := _count_differences(left.read(name), right.read(name)):
            total = left.tensors[name].nbytes // left.tensors[name].dtype.itemsize
            yield f"{name}: {format_count(count)} of {format_count(total)} values"


def _count_differences(left: Tensor, right: Tensor) -> int:
    """Counts values with different bytes."""
    chunks = zip(
        left.reshape(-1).split(COMPARED_VALUES),
        right.reshape(-1).split(COMPARED_VALUES),
        strict=True,
    )
    return sum(
        int((_bytes(left_chunk) != _bytes(right_chunk)).any(dim=1).sum())
        for left_chunk, right_chunk in chunks
    )


def _bytes(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.uint8).reshape(len(values), -1)


def _metric_differences(left: Path, right: Path) -> Iterator[str]:
    """Yields differences of metrics and quantization settings, as labelled on cards."""
    left_metrics = _labelled_metrics(_report_sources(left))
    right_metrics = _labelled_metrics(_report_sources(right))
    for label in left_metrics | right_metrics:
        values = [format_quoted(metrics.get(label)) for metrics in (left_metrics, right_metrics)]
        if values[0] != values[1]:
            yield f"{label}: {values[0]}, {values[1]}"


def _labelled_metrics(sources: QuantizationSources) -> dict[str, Any]:
    """Maps labels to values of all metrics: overall, per text and per benchmark."""
    validation = sources.validation
    facts = validation.facts if validation else ValidateFacts.read({})
    metrics = card_values(facts) | {row.label: row.read(sources) for row in QUANTIZATION_ROWS}
    metrics["verdict"] = validation.verdict if validation else None
    for text in facts.texts or []:
        metrics |= {
            f"{format_quoted(text.name)}, {label}": value
            for label, value in card_text_values(text).items()
        }
    for task in benchmark_facts(facts):
        metrics |= {
            f"{task.name}, {_neutral_label(row.label)}": row.read(task) for row in BENCHMARK_METRICS
        }
    return metrics


def _neutral_label(label: str) -> str:
    """Returns the label of a metric without the precision of the reference."""
    return label.format(reference="reference")


def _report_sources(folder: Path) -> QuantizationSources:
    """Reads the reports of a model, without reports of other weights, and no config."""
    quantize = read_stage_report(folder / QUANTIZED, QuantizeReport)
    if quantize is not None and not matches_weights(quantize, folder):
        note(f"{describe_foreign_report(folder / QUANTIZED)}: its figures are not compared")
        quantize = None
    return QuantizationSources(
        config={},
        quantize=quantize,
        validation=read_stage_report(folder / VALIDATION_FOLDER / "report.json", ValidationReport),
        calibration_license=None,
    )


def _file_differences(left: Path, right: Path) -> Iterator[str]:
    """Yields differences of files other than weights."""
    digests = [_hashes(folder) for folder in (left, right)]
    for name in sorted(digests[0].keys() | digests[1].keys()):
        if name not in digests[1]:
            yield f"{name}: only in the first"
        elif name not in digests[0]:
            yield f"{name}: only in the second"
        elif digests[0][name] != digests[1][name]:
            yield f"{name}: other bytes"


def _hashes(folder: Path) -> dict[str, str]:
    paths = (
        path for path in folder.rglob("*") if path.is_file() and path.suffix not in WEIGHT_SUFFIXES
    )
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in sorted(paths)}
