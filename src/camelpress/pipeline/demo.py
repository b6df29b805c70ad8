"""The embedded pair of tiny models through the whole pipeline, with round-to-nearest beside it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import torch

from camelpress.core.output.durable_writes import disk_errors
from camelpress.pipeline import run as pipeline
from camelpress.pipeline.recipe import Recipe, read_recipe
from camelpress.reporting.stage_report import Report

DEMO_RECIPE = "data/demo/recipe.yaml"


@dataclass(frozen=True)
class DemoResult:
    """The outcome, and what plain rounding would have given."""

    recipe: Recipe
    outcome: pipeline.PipelineOutcome
    round_to_nearest: Report

    @property
    def report_page(self) -> Path:
        """The report to look at."""
        return self.recipe.out / "validation" / "report.html"


def run_demo(out: Path, *, force: bool = False, restart: bool = False) -> DemoResult:
    """Recover, quantize, validate and publish the embedded model, into `out`.

    Args:
        out: folder for all outputs; a second run there finds everything done.
        force: run every stage again.
        restart: begin a stage again that is unfinished and was begun otherwise.
    """
    torch.set_num_threads(1)  # threads that meet at every tiny product cost more than they give
    with as_file(files("camelpress") / DEMO_RECIPE) as path:
        recipe = read_recipe(path, [f"out={out.resolve()}"])
        outcome = pipeline.run(recipe, force=force, restart=restart)
        return DemoResult(recipe, outcome, _round_to_nearest(recipe, force=force, restart=restart))


def _round_to_nearest(recipe: Recipe, *, force: bool, restart: bool) -> Report:
    """Quantize and validate at the same settings, without calibration."""
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
    ).reports["validate"]
