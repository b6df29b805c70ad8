"""Writes the recipe for `camelpress rebuild` from the reports of a release.

The recipe has no paths of this machine. Models are named by hub name and commit or by the last part
of their path, and texts by their name.
"""

from __future__ import annotations

import re
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml

from camelpress.core.errors import CheckpointProblem
from camelpress.core.hub.repo_id import HUB_PREFIX, REPO_ID_PATTERN
from camelpress.reporting.report_classes import QuantizeReport, RecoverReport

RECIPE_FILE = "recipe.yaml"
COMMIT_HASH = re.compile(r"[0-9a-f]{40}")
RECIPE_HEADER = """\
# Recipe of this release. `camelpress rebuild` runs it and compares every byte.
"""


def rebuild_recipe(
    recover: RecoverReport | None, quantize: QuantizeReport | None
) -> dict[str, Any] | None:
    """Builds the recipe of a model from its stage reports; None if a report lacks a fact.

    Args:
        recover: report of recover in the release.
        quantize: report of quantize in the release.
    """
    if recover is None or quantize is None:
        return None
    sources = recover.facts.sources or {}
    if not all(role in sources and sources[role].origin for role in ("base", "diff")):
        return None
    calibration = [
        {"source": _portable_text_name(file.name), "weight": file.weight}
        for file in quantize.facts.calibration_files
    ]
    return {
        "base": portable_model_name(sources["base"].origin),
        "diff": portable_model_name(sources["diff"].origin),
        "out": "rebuilt",
        "recover": recover.settings,
        "quantize": quantize.settings | {"calibration": calibration},
    }


def portable_model_name(origin: str) -> str:
    """Returns `hf:org/name@commit` for a hub model, else the last part of the path."""
    match = REPO_ID_PATTERN.fullmatch(origin)
    if match is not None and COMMIT_HASH.fullmatch(match["revision"] or ""):
        return f"{HUB_PREFIX}{match['repository']}@{match['revision']}"
    return PureWindowsPath(origin).name


def _portable_text_name(name: str) -> str:
    """Returns the text name in the form of `locate_file`, with `hf:` for a hub file."""
    return f"{HUB_PREFIX}{name}" if "/" in name else name


def write_rebuild_recipe(folder: Path, recipe: dict[str, Any] | None, *, needed: bool) -> None:
    """Writes the recipe into a release folder.

    Raises:
        CheckpointProblem: the release needs a recipe, but the reports lack a fact.
    """
    if recipe is not None:
        text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
        (folder / RECIPE_FILE).write_text(RECIPE_HEADER + text, encoding="utf-8")
    elif needed:
        raise CheckpointProblem(
            f"{folder.name.removesuffix('.partial')} would have no recipe: the candidate lacks the "
            "report of recover or of quantize, or they do not name base, diff and calibration",
            next_step="recover and quantize again, or publish with the weights",
        )
