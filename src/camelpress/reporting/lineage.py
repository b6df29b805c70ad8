"""Checks that a report describes the weights beside it, which a copied report does not.

A report of `quantize` or `export` lists the SHA-256 of the weight files that the stage wrote. An
export carries the report of `quantize` along, so its own report lists the weights that it and the
exports before it were made from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePath

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import CheckpointProblem
from camelpress.core.files.file_hashes import file_manifest, sha256_file, sha256_json
from camelpress.reporting.report_classes import ExportReport, read_report
from camelpress.reporting.stage_report import Report

EXPORT = "export-report.json"
WRITTEN = ".safetensors"  # suffix of weight files on output
STORED = (WRITTEN, ".bin", ".pth")  # suffixes of weight files on input
FileHashes = Mapping[str, str] | None


def written_weights(folder: Path) -> dict[str, str]:
    """Returns name to SHA-256 of the weight files that a stage wrote into a folder."""
    return file_manifest(folder.glob(f"*{WRITTEN}"), relative_to=folder)


def list_source_digests(checkpoint: Checkpoint, hashes: Mapping[str, str]) -> list[str]:
    """Returns the digests of a model's weights and of the weights it was exported from.

    Args:
        checkpoint: the model.
        hashes: name to SHA-256 of its files.
    """
    digest = sha256_json({path.name: hashes[path.name] for path in checkpoint.weight_files()})
    return [digest, *_exported_from(checkpoint.folder, hashes)]


def matches_weights(report: Report, folder: Path, hashes: FileHashes = None) -> bool:
    """Returns False if the weights beside a report do not come from the weights it lists.

    A report of an earlier version lists no weights. A release may hold no weights to compare.

    Args:
        report: report in the folder.
        folder: folder of a model or a release.
        hashes: name to SHA-256 of the files; None reads the listed files.
    """
    listed = _weights(report)
    names = [path.name for path in folder.iterdir()] if hashes is None else hashes
    has_weights = any(PurePath(name).suffix in STORED for name in names)
    if not listed or not has_weights or _are_beside(listed, folder, hashes):
        return True
    return sha256_json(listed) in _exported_from(folder, hashes)


def describe_foreign_report(path: Path) -> str:
    """Returns the sentence about a report that does not describe the weights beside it."""
    return f"{path} lists other weights than those beside it"


def _exported_from(folder: Path, hashes: FileHashes) -> list[str]:
    """Returns the source digests of an export, or [] if the export wrote other weights."""
    if not (folder / EXPORT).is_file():
        return []
    try:
        report = read_report(folder / EXPORT)
    except CheckpointProblem:
        return []
    digests = report.facts.exported_from if isinstance(report, ExportReport) else None
    listed = _weights(report)
    if not listed or not digests or not _are_beside(listed, folder, hashes):
        return []
    return digests


def _are_beside(listed: Mapping[str, str], folder: Path, hashes: FileHashes) -> bool:
    """Returns True if files of a folder have the listed hashes; reads small files first."""
    if hashes is not None:
        return listed.items() <= hashes.items()
    files = {folder / name: digest for name, digest in listed.items()}
    if not all(path.is_file() for path in files):
        return False
    by_size = sorted(files, key=lambda path: path.stat().st_size)
    return all(sha256_file(path) == files[path] for path in by_size)


def _weights(report: Report) -> dict[str, str]:
    names = {name for name in report.outputs if PurePath(name).match(f"*{WRITTEN}")}
    return {name: report.outputs[name] for name in names if PurePath(name).name == name}
