"""What goes into a release folder, and in what form: model files as they are, reports made neutral.

A report as a stage wrote it tells of the machine: seconds, memory, paths. None of that is shipped.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

from camelpress.core.checkpoint.checkpoint import copy_companions
from camelpress.core.errors import CheckpointProblem
from camelpress.core.files.file_hashes import REPORT_SUFFIX, WORDS, is_identity
from camelpress.core.hub.model_location import TEMPLATES
from camelpress.core.progress import track
from camelpress.reporting.stage_report import Report

VALIDATION = "validation"
PAGES = ("report.md", "report.html", "junit.xml")
TERMS = ("LICENSE*", "NOTICE*", "USE_POLICY*", "llama_license.txt")
SHIPPED = ("*.safetensors", "*.json", "*.model", "*.jinja", "merges.txt", *TERMS)
WEIGHTS = ".safetensors"
WEIGHTLESS = ("config.json", "quantize_config.json", "*-report.json", *TERMS)
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
ROOTED = re.compile(r"(/|~/|\.{1,2}/|[A-Za-z]:\\)\S")


def is_carried(name: str) -> bool:
    """Whether a release carries a file of this name over from the model's folder."""
    path = PurePath(name)
    return (
        all(PLAIN_NAME.fullmatch(part) for part in path.parts)
        and (path.parent.name == "" or (path.parent.name == TEMPLATES and path.match("*.jinja")))
        and name not in WORDS
        and any(path.match(pattern) for pattern in SHIPPED)
    )


def is_rebuilt(name: str) -> bool:
    """Whether a release without weights leaves a file of this name to who makes them again."""
    return not any(PurePath(name).match(pattern) for pattern in WEIGHTLESS)


def carried(folder: Path) -> list[Path]:
    """The files of a model folder that a release carries, sorted by name."""
    paths = [*sorted(folder.iterdir()), *sorted(folder.glob(f"{TEMPLATES}/*"))]
    return [path for path in paths if is_carried(_name(path, folder)) and path.is_file()]


def differing(
    judged: Mapping[str, str], hashes: Mapping[str, str], *, recipe_only: bool
) -> list[str]:
    """Names of model files in a release that are not as they were judged: changed, new or lost."""
    expected = {
        name: digest
        for name, digest in judged.items()
        if is_carried(name) and not (recipe_only and is_rebuilt(name))
    }
    found = {
        name: digest
        for name, digest in hashes.items()
        if is_identity(name) and PurePath(name).parent.name in ("", TEMPLATES)
    }
    return sorted(name for name in expected.keys() | found if expected.get(name) != found.get(name))


def copy_model(candidate: Path, folder: Path, *, linked: bool, recipe_only: bool) -> list[str]:
    """Copy what is carried, or link its weights, reports made neutral; return what was left out.

    Raises:
        CheckpointProblem: a file besides the weights is a link to another folder's, which may be
            nobody's business.
    """
    paths = [path for path in carried(candidate) if not (recipe_only and is_rebuilt(path.name))]
    for path in track(paths, "publish"):
        name = _name(path, candidate)
        if path.suffix != WEIGHTS and path.resolve().parent != (candidate.resolve() / name).parent:
            raise CheckpointProblem(
                f"{path} is a link that leads to {path.resolve()}",
                next_step="put the file itself there if it shall be published",
            )
        if name.endswith(REPORT_SUFFIX):
            neutral(Report.read(path)).write(folder / name)
        elif not (linked and path.suffix == WEIGHTS and _link(path, folder / name)):
            copy_companions({name: path}, folder)
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


def copy_validation(report_dir: Path, report: Report, folder: Path) -> Report:
    """Copy the gate's report, made neutral, and its pages for people where there are any."""
    folder.mkdir()
    shipped = neutral(report)
    shipped.write(folder / "report.json")
    places = set(_places([report.facts, report.settings]))
    for name in PAGES:
        if (report_dir / name).is_file():
            text = _page(report_dir / name)
            for escaped in (html.escape, str):
                text = _shorten(text, {escaped(place) for place in places})
            (folder / name).write_text(text, encoding="utf-8")
    return shipped


def _page(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointProblem(
            f"{path} is not UTF-8 text", next_step="remove it, or validate again"
        ) from error


def stage_report(path: Path) -> Report | None:
    """The report of an earlier stage, if the model carries it."""
    return Report.read(path) if path.is_file() else None


def neutral(report: Report) -> Report:
    """A report without its cost, and with bare names where it has places of files."""
    places = set(_places([report.facts, report.settings]))
    checks = tuple(
        check.model_copy(update={"reason": _shorten(check.reason, places)})
        for check in report.checks
    )
    return report.model_copy(
        update={
            "facts": _shorten(report.facts, places),
            "settings": _shorten(report.settings, places),
            "checks": checks,
            "cost": {},
            "files": (),
        }
    )


def _places(content: Any) -> Iterator[str]:
    """All strings in plain data that are the place of a file on some machine."""
    if isinstance(content, str):
        if ROOTED.match(content) and len(PureWindowsPath(content).parts) > 2:
            yield content
    elif isinstance(content, Mapping):
        for value in content.values():
            yield from _places(value)
    elif isinstance(content, list):
        for value in content:
            yield from _places(value)


def _shorten(content: Any, places: set[str]) -> Any:
    """The same plain data, with the last part of each place instead of all of it."""
    if isinstance(content, str):
        for place in sorted(places, key=lambda place: (-len(place), place)):
            content = content.replace(place, PureWindowsPath(place).name)
        return content
    if isinstance(content, Mapping):
        return {key: _shorten(value, places) for key, value in content.items()}
    if isinstance(content, list):
        return [_shorten(value, places) for value in content]
    return content
