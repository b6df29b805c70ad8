"""How a release is made again: a recipe of what its reports tell, for `camelpress rebuild`.

It has no place of this machine in it: models are named as on the hub, with their commit, or by the
last part of their path, and texts by their name.
"""

from __future__ import annotations

import re
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml

from camelpress.core.errors import CheckpointProblem
from camelpress.core.hub.model_location import HUB_PREFIX, REPO_ID_PATTERN
from camelpress.reporting.quoted_values import value_at
from camelpress.reporting.stage_report import Report

RECIPE_FILE = "recipe.yaml"
COMMIT_HASH = re.compile(r"[0-9a-f]{40}")
RECIPE_HEADER = """\
# What this release was made with. `camelpress rebuild` runs it, and compares every byte.
"""


def rebuild_recipe(recover: Report | None, quantize: Report | None) -> dict[str, Any] | None:
    """The recipe of a model from the reports of its stages; None where they do not tell it all.

    Args:
        recover: what was recovered, as the release ships the report.
        quantize: how it was quantized.
    """
    sources = value_at(recover.facts if recover else None, "sources")
    base, diff = value_at(sources, "base.origin"), value_at(sources, "diff.origin")
    texts = value_at(quantize.facts if quantize else None, "calibration.files") or []
    if recover is None or quantize is None or not (isinstance(base, str) and isinstance(diff, str)):
        return None
    calibration = [
        {
            "source": _portable_text_name(str(value_at(each, "name"))),
            "weight": value_at(each, "weight"),
        }
        for each in (texts if isinstance(texts, list) else [])
    ]
    return {
        "base": portable_model_name(base),
        "diff": portable_model_name(diff),
        "out": "rebuilt",
        "recover": recover.settings,
        "quantize": quantize.settings | {"calibration": calibration},
    }


def portable_model_name(origin: str) -> str:
    """`hf:org/name@commit` for what came from the hub, else the last part of a path."""
    named = REPO_ID_PATTERN.fullmatch(origin)
    if named is not None and COMMIT_HASH.fullmatch(named["revision"] or ""):
        return f"{HUB_PREFIX}{named['repository']}@{named['revision']}"
    return PureWindowsPath(origin).name


def _portable_text_name(name: str) -> str:
    """As `locate_file` reads it; a file of this machine is named without its folder."""
    return f"{HUB_PREFIX}{name}" if "/" in name else name


def write_rebuild_recipe(folder: Path, made_by: dict[str, Any] | None, *, needed: bool) -> None:
    """Save the recipe in a release.

    Raises:
        CheckpointProblem: it is needed, and the reports do not tell it.
    """
    if made_by is not None:
        text = yaml.safe_dump(made_by, sort_keys=False, allow_unicode=True)
        (folder / RECIPE_FILE).write_text(RECIPE_HEADER + text, encoding="utf-8")
    elif needed:
        raise CheckpointProblem(
            f"{folder.name.removesuffix('.partial')} would have no recipe: the candidate lacks the "
            "report of recover or of quantize, or they do not name base, diff and calibration",
            next_step="recover and quantize again, or publish with the weights",
        )
