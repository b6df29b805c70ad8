"""Decides whether a report describes the weights beside it: a copy in another folder does not.

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
from camelpress.reporting.stage_report import Report

EXPORT = "export-report.json"
SOURCES = "exported_from"  # key of the facts of an export: digests of the weights before it
WRITTEN = ".safetensors"  # suffix of the weight files that a stage writes
STORED = (WRITTEN, ".bin", ".pth")  # suffixes of all weight files that are read
FileHashes = Mapping[str, str] | None


def written_weights(folder: Path) -> dict[str, str]:
    """Returns name to SHA-256 of the weight files that a stage wrote into a folder."""
    return file_manifest(folder.glob(f"*{WRITTEN}"), relative_to=folder)


def sources(checkpoint: Checkpoint, hashes: Mapping[str, str]) -> list[str]:
    """Returns the digests of the weights of a model and of those that it was exported from.

    Args:
        checkpoint: the model.
        hashes: name to SHA-256 of its files.
    """
    digest = sha256_json({path.name: hashes[path.name] for path in checkpoint.weight_files()})
    return [digest, *_exported_from(checkpoint.folder, hashes)]


def describes(report: Report, folder: Path, hashes: FileHashes = None) -> bool:
    """Returns False if a report lists weights and those beside it do not come from them.

    A report of an earlier version lists none, and a release may have no weights to compare.

    Args:
        report: lies in the folder.
        folder: of a model or a release.
        hashes: name to SHA-256 of its files; None reads the files that the report lists.
    """
    listed = _weights(report)
    names = [path.name for path in folder.iterdir()] if hashes is None else hashes
    has_weights = any(PurePath(name).suffix in STORED for name in names)
    if not listed or not has_weights or _are_beside(listed, folder, hashes):
        return True
    return sha256_json(listed) in _exported_from(folder, hashes)


def foreign_report(path: Path) -> str:
    """Returns the sentence about a report that does not describe the weights beside it."""
    return f"{path} lists other weights than those beside it"


def _exported_from(folder: Path, hashes: FileHashes) -> list[str]:
    """Returns the sources that an export lists, if it wrote the weights in a folder."""
    if not (folder / EXPORT).is_file():
        return []
    try:
        report = Report.read_report(folder / EXPORT)
    except CheckpointProblem:
        return []
    listed, digests = _weights(report), report.facts.get(SOURCES)
    if not listed or not isinstance(digests, list) or not _are_beside(listed, folder, hashes):
        return []
    return [*map(str, digests)]


def _are_beside(listed: Mapping[str, str], folder: Path, hashes: FileHashes) -> bool:
    """Returns whether files of a folder have the hashes of a list; small files are read first."""
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
