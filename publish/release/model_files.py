"""What goes into a release folder, and in what form: model files as they are, reports made neutral.

A report as a stage wrote it tells of the machine: seconds, memory, paths. None of that is shipped.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

from camelpress.core.checkpoint.checkpoint import copy_sidecars
from camelpress.core.errors import CheckpointProblem
from camelpress.core.files.file_hashes import (
    RELEASE_METADATA_FILES,
    REPORT_SUFFIX,
    is_checkpoint_file,
)
from camelpress.core.hub.model_location import CHAT_TEMPLATES_FOLDER
from camelpress.core.progress import track
from camelpress.reporting.stage_report import Report

VALIDATION_FOLDER = "validation"
REPORT_PAGES = ("report.md", "report.html", "junit.xml")
LICENSE_PATTERNS = ("LICENSE*", "NOTICE*", "USE_POLICY*", "llama_license.txt")
MODEL_PATTERNS = ("*.safetensors", "*.json", "*.model", "*.jinja", "merges.txt", *LICENSE_PATTERNS)
WEIGHTS_SUFFIX = ".safetensors"
RECIPE_ONLY_PATTERNS = ("config.json", "quantize_config.json", "*-report.json", *LICENSE_PATTERNS)
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
ABSOLUTE_PATH = re.compile(r"(/|~/|\.{1,2}/|[A-Za-z]:\\)\S")


def is_model_file(name: str) -> bool:
    """Whether a release carries a file of this name over from the model's folder."""
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
    """Whether a release without weights leaves a file of this name to who makes them again."""
    return not any(PurePath(name).match(pattern) for pattern in RECIPE_ONLY_PATTERNS)


def model_files(folder: Path) -> list[Path]:
    """The files of a model folder that a release carries, sorted by name."""
    paths = [*sorted(folder.iterdir()), *sorted(folder.glob(f"{CHAT_TEMPLATES_FOLDER}/*"))]
    return [path for path in paths if is_model_file(_name(path, folder)) and path.is_file()]


def changed_model_files(
    judged: Mapping[str, str], hashes: Mapping[str, str], *, recipe_only: bool
) -> list[str]:
    """Names of model files in a release that are not as they were judged: changed, new or lost."""
    expected = {
        name: digest
        for name, digest in judged.items()
        if is_model_file(name) and not (recipe_only and is_rebuild_output(name))
    }
    found = {
        name: digest
        for name, digest in hashes.items()
        if is_checkpoint_file(name) and PurePath(name).parent.name in ("", CHAT_TEMPLATES_FOLDER)
    }
    return sorted(name for name in expected.keys() | found if expected.get(name) != found.get(name))


def copy_model_files(
    candidate: Path, folder: Path, *, linked: bool, recipe_only: bool
) -> list[str]:
    """Copy what is carried, or link its weights, reports made neutral; return what was left out.

    Raises:
        CheckpointProblem: a file besides the weights is a link to another folder's, which may be
            nobody's business.
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
                f"{path} is a link that leads to {path.resolve()}",
                next_step="put the file itself there if it shall be published",
            )
        if name.endswith(REPORT_SUFFIX):
            portable_report(Report.read_report(path)).write(folder / name)
        elif not (linked and path.suffix == WEIGHTS_SUFFIX and _link(path, folder / name)):
            copy_sidecars({name: path}, folder)
    taken = {PurePath(_name(path, candidate)).parts[0] for path in paths}
    return sorted({path.name for path in candidate.iterdir()} - taken)


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _link(path: Path, other: Path) -> bool:
    """Give a file a second name; False where the disk cannot."""
    try:
        other.hardlink_to(path.resolve())
    except OSError:
        return False
    return True


def copy_validation_report(report_dir: Path, report: Report, folder: Path) -> Report:
    """Copy the gate's report, made neutral, and its pages for people where there are any."""
    folder.mkdir()
    shipped = portable_report(report)
    shipped.write(folder / "report.json")
    places = set(_machine_paths([report.facts, report.settings]))
    for name in REPORT_PAGES:
        if (report_dir / name).is_file():
            text = _read_page(report_dir / name)
            for escaped in (html.escape, str):
                text = _strip_folders(text, {escaped(place) for place in places})
            (folder / name).write_text(text, encoding="utf-8")
    return shipped


def _read_page(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointProblem(
            f"{path} is not UTF-8 text", next_step="remove it, or validate again"
        ) from error


def read_stage_report(path: Path) -> Report | None:
    """The report of an earlier stage, if the model carries it."""
    return Report.read_report(path) if path.is_file() else None


def portable_report(report: Report) -> Report:
    """A report without its cost, and with bare names where it has places of files."""
    places = set(_machine_paths([report.facts, report.settings]))
    checks = tuple(
        check.model_copy(update={"reason": _strip_folders(check.reason, places)})
        for check in report.checks
    )
    return report.model_copy(
        update={
            "facts": _strip_folders(report.facts, places),
            "settings": _strip_folders(report.settings, places),
            "checks": checks,
            "cost": {},
            "files": (),
        }
    )


def _machine_paths(content: Any) -> Iterator[str]:
    """All strings in plain data that are the place of a file on some machine."""
    if isinstance(content, str):
        if ABSOLUTE_PATH.match(content) and len(PureWindowsPath(content).parts) > 2:
            yield content
    elif isinstance(content, Mapping):
        for value in content.values():
            yield from _machine_paths(value)
    elif isinstance(content, list):
        for value in content:
            yield from _machine_paths(value)


def _strip_folders(content: Any, places: set[str]) -> Any:
    """The same plain data, with the last part of each place instead of all of it."""
    if isinstance(content, str):
        for place in sorted(places, key=lambda place: (-len(place), place)):
            content = content.replace(place, PureWindowsPath(place).name)
        return content
    if isinstance(content, Mapping):
        return {key: _strip_folders(value, places) for key, value in content.items()}
    if isinstance(content, list):
        return [_strip_folders(value, places) for value in content]
    return content
