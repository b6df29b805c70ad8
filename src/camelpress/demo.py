"""The embedded pair of tiny models through the whole pipeline, with round-to-nearest beside it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from camelpress import pipeline
from camelpress.core.checkpoint import Checkpoint
from camelpress.core.report import Report
from camelpress.quantize import run as quantize
from camelpress.recipe import Recipe, read
from camelpress.validate import run as validate

RECIPE = "data/demo/recipe.yaml"


@dataclass(frozen=True)
class Demo:
    """The outcome, and what plain rounding would have given."""

    recipe: Recipe
    outcome: pipeline.Outcome
    baseline: Report

    @property
    def page(self) -> Path:
        """The report to look at."""
        return self.recipe.out / "validation" / "report.html"


def run(out: Path, *, force: bool = False) -> Demo:
    """Recover, quantize, validate and publish the embedded model, into `out`.

    Args:
        out: folder for all outputs; a second run there finds everything done.
        force: run every stage again.
    """
    with as_file(files("camelpress") / RECIPE) as path:
        recipe = read(path, [f"out={out.resolve()}"])
        outcome = pipeline.run(recipe, force=force)
        return Demo(recipe, outcome, _round_to_nearest(recipe))


def _round_to_nearest(recipe: Recipe) -> Report:
    """Quantize and validate at the same settings, without calibration."""
    reference = Checkpoint.open(recipe.out / "recovered")
    folder = recipe.out / "round-to-nearest"
    settings = recipe.quantize.model_copy(update={"method": "rtn"})
    quantize.run(reference, folder / "quantized", settings, force=True)
    return validate.run(
        reference,
        Checkpoint.open(folder / "quantized"),
        folder / "validation",
        recipe.validation,
        force=True,
    )
