"""Copies model files and reports into a release folder.

Reports lose facts about the machine: seconds, memory and paths.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any, TypeVar

from camelpress.core.checkpoint.checkpoint import copy_sidecars
from camelpress.core.errors import CheckpointProblem
from camelpress.core.file_names import CHAT_TEMPLATES_FOLDER
from camelpress.core.files.file_hashes import (
    RELEASE_METADATA_FILES,
    REPORT_SUFFIX,
    is_checkpoint_file,
)
from camelpress.core.progress import track
from camelpress.reporting.report_classes import ValidationReport, read_report
from camelpress.reporting.stage_report import Report

StageReport = TypeVar("StageReport", bound=Report)
VALIDATION_FOLDER = "validation"
REPORT_PAGES = ("report.md", "report.html", "junit.xml")
LICENSE_PATTERNS = ("LICENSE*", "NOTICE*", "USE_POLICY*", "llama_license.txt")
MODEL_PATTERNS = ("*.safetensors", "*.json", "*.model", "*.jinja", "merges.txt", *LICENSE_PATTERNS)
WEIGHTS_SUFFIX = ".safetensors"
RECIPE_ONLY_PATTERNS = ("config.json", "quantize_config.json", "*-report.json", *LICENSE_PATTERNS)
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
ABSOLUTE_PATH = re.compile(r"(/|~/|\.{1,2}/|[A-Za-z]:\\)\S")


def is_model_file(name: str) -> bool:
    """Returns True for names of model files that a release includes."""
    path = PurePath(name)
    return (
        all(PLAIN_NAME.fullmatch(part) for part in path.parts)
        and (
            path.parent.name == ""
            or (path.parent.name == CHAT_TEMPLATES_FOLDER and path.match("*.jinja"))
        )
        and name not in RELEASE_METADATA_FILES
        and any(path.match(pattern) for pattern in MODEL_PATTERNS)
    )


def is_rebuild_output(name: str) -> bool:
    """Returns True for names of files that `rebuild` makes, absent in a recipe-only release."""
    return not any(PurePath(name).match(pattern) for pattern in RECIPE_ONLY_PATTERNS)


def model_files(folder: Path) -> list[Path]:
    """Lists the files of a model folder for a release, sorted by name."""
    paths = [*sorted(folder.iterdir()), *sorted(folder.glob(f"{CHAT_TEMPLATES_FOLDER}/*"))]
    return [path for path in paths if is_model_file(_name(path, folder)) and path.is_file()]


def changed_model_files(
    model_hashes: Mapping[str, str], hashes: Mapping[str, str], *, recipe_only: bool
) -> list[str]:
    """Returns names of model files changed, added or lost since validation."""
    expected = {
        name: digest
        for name, digest in model_hashes.items()
        if is_model_file(name) and not (recipe_only and is_rebuild_output(name))
    }
    actual = {
        name: digest
        for name, digest in hashes.items()
        if is_checkpoint_file(name) and PurePath(name).parent.name in ("", CHAT_TEMPLATES_FOLDER)
    }
    return sorted(
        name for name in expected.keys() | actual if expected.get(name) != actual.get(name)
    )


def copy_model_files(
    candidate: Path, folder: Path, *, linked: bool, recipe_only: bool
) -> list[str]:
    """Copies model files, hard-links weights on request, and returns the names left out.

    Raises:
        CheckpointProblem: a file other than weights is a link into another folder, and may be
            private.
    """
    paths = [
        path
        for path in model_files(candidate)
        if not (recipe_only and is_rebuild_output(path.name))
    ]
    for path in track(paths, "publish"):
        name = _name(path, candidate)
        if (
            path.suffix != WEIGHTS_SUFFIX
            and path.resolve().parent != (candidate.resolve() / name).parent
        ):
            raise CheckpointProblem(
                f"{path} is a link to {path.resolve()}",
                next_step="replace the link by the file, if it is meant to be published",
            )
        if name.endswith(REPORT_SUFFIX):
            portable_report(read_report(path)).write(folder / name)
        elif not (linked and path.suffix == WEIGHTS_SUFFIX and _link(path, folder / name)):
            copy_sidecars({name: path}, folder)
    copied_names = {PurePath(_name(path, candidate)).parts[0] for path in paths}
    return sorted({path.name for path in candidate.iterdir()} - copied_names)


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _link(path: Path, target: Path) -> bool:
    """Hard-links a file; False if the disk does not support it."""
    try:
        target.hardlink_to(path.resolve())
    except OSError:
        return False
    return True


def copy_validation_report(
    report_dir: Path, report: ValidationReport, folder: Path
) -> ValidationReport:
    """Copies the validation report without machine facts, and its existing pages."""
    folder.mkdir()
    portable = portable_report(report)
    portable.write(folder / "report.json")
    paths = set(_machine_paths([report.facts.record, report.settings]))
    for name in REPORT_PAGES:
        if (report_dir / name).is_file():
            text = _read_page(report_dir / name)
            for encode in (html.escape, str):
                text = _strip_folders(text, {encode(machine_path) for machine_path in paths})
            (folder / name).write_text(text, encoding="utf-8")
    return portable


def _read_page(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointProblem(
            f"{path} is not UTF-8 text", next_step="remove it, or validate again"
        ) from error


def read_stage_report(path: Path, kind: type[StageReport]) -> StageReport | None:
    """Reads the report of an earlier stage; None if the file is missing."""
    return kind.read(path) if path.is_file() else None


def portable_report(report: StageReport) -> StageReport:
    """Returns a report without cost, and with file names in place of paths."""
    paths = set(_machine_paths([report.facts.record, report.settings]))
    checks = tuple(
        check.model_copy(update={"reason": _strip_folders(check.reason, paths)})
        for check in report.checks
    )
    return report.model_copy(
        update={
            "facts": type(report.facts).read(_strip_folders(report.facts.record, paths)),
            "settings": _strip_folders(report.settings, paths),
            "checks": checks,
            "cost": {},
            "files": (),
        }
    )


def _machine_paths(content: Any) -> Iterator[str]:
    """Yields all strings in plain data that are absolute or relative file paths."""
    if isinstance(content, str):
        if ABSOLUTE_PATH.match(content) and len(PureWindowsPath(content).parts) > 2:
            yield content
    elif isinstance(content, Mapping):
        for value in content.values():
            yield from _machine_paths(value)
    elif isinstance(content, list):
        for value in content:
            yield from _machine_paths(value)


def _strip_folders(content: Any, paths: set[str]) -> Any:
    """Replaces each path in plain data by its last part."""
    if isinstance(content, str):
        for path in sorted(paths, key=lambda path: (-len(path), path)):
            content = content.replace(path, PureWindowsPath(path).name)
        return content
    if isinstance(content, Mapping):
        return {key: _strip_folders(value, paths) for key, value in content.items()}
    if isinstance(content, list):
        return [_strip_folders(value, paths) for value in content]
    return content
