"""Runs the whole pipeline on an embedded pair of tiny models, beside plain rounding."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import torch

from camelpress.core.output.durable_writes import disk_errors
from camelpress.pipeline import run as pipeline
from camelpress.pipeline.recipe import Recipe, read_recipe
from camelpress.reporting.report_classes import ValidationReport

DEMO_RECIPE = "data/demo/recipe.yaml"


@dataclass(frozen=True)
class DemoResult:
    """The outcome of the pipeline, and the validation report of plain rounding."""

    recipe: Recipe
    outcome: pipeline.PipelineOutcome
    round_to_nearest: ValidationReport

    @property
    def report_page(self) -> Path:
        """Path of the HTML report."""
        return self.recipe.out / "validation" / "report.html"


def run_demo(out: Path, *, force: bool = False, restart: bool = False) -> DemoResult:
    """Recovers, quantizes, validates and publishes the embedded model into `out`.

    Args:
        out: folder for all outputs; a second run there skips finished stages.
        force: run every stage again.
        restart: begin an unfinished stage again if its settings or inputs changed.
    """
    torch.set_num_threads(1)  # on tiny matrices, threads cost more time than they save
    with as_file(files("camelpress") / DEMO_RECIPE) as path:
        recipe = read_recipe(path, [f"out={out.resolve()}"])
        outcome = pipeline.run(recipe, force=force, restart=restart)
        return DemoResult(recipe, outcome, _round_to_nearest(recipe, force=force, restart=restart))


def _round_to_nearest(recipe: Recipe, *, force: bool, restart: bool) -> ValidationReport:
    """Quantizes by rounding to nearest at the same settings, and validates the result."""
    out = recipe.out / "round-to-nearest"
    with disk_errors(out):
        out.mkdir(exist_ok=True)
    rounding = recipe.quantize.model_copy(update={"method": "rtn"})
    work = pipeline.quantize_and_validate(
        recipe.model_copy(update={"quantize": rounding}),
        recipe.out / "recovered",
        out,
        restart=restart,
    )
    return pipeline.run_stages(
        work, pipeline.PipelineLock(out / pipeline.LOCK_FILE), force=force
    ).validation
