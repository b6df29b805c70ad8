"""Runs whole pipelines: from a recipe, from a release, or on a tiny model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from camelpress.cli.command import PIPELINE_PANEL, FolderArgument, RestartOption, command
from camelpress.cli.console import Screen, flatten_report, print_rows
from camelpress.core.exit_codes import ExitCode
from camelpress.reporting.metrics import METRICS
from camelpress.reporting.model_precision import with_precision
from camelpress.reporting.report_classes import ValidationReport


@command("run", PIPELINE_PANEL)
def run_command(
    screen: Screen,
    recipe: Annotated[Path, typer.Argument(show_default=False)],
    override: Annotated[
        list[str] | None,
        typer.Option(
            "-o", "--override", help="Override a recipe entry: section.key=value; repeatable."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Run finished stages again.")] = False,
    restart: RestartOption = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print commands, files and sizes without running anything."),
    ] = False,
) -> ExitCode:
    """Runs all stages of a recipe in order, and skips finished stages with unchanged inputs."""
    from camelpress.pipeline import run as pipeline
    from camelpress.pipeline.recipe import read_recipe

    if dry_run:
        from camelpress.pipeline.plan import plan_run

        screen.plan([asdict(step) for step in plan_run(read_recipe(recipe, override or ()))])
        return ExitCode.DONE
    outcome = pipeline.run(read_recipe(recipe, override or ()), force=force, restart=restart)
    if screen.json:
        screen.print_json(
            {
                "verdict": outcome.verdict,
                "skipped": outcome.skipped,
                "stages": {
                    name: flatten_report(report) for name, report in outcome.reports.items()
                },
            }
        )
    else:
        for report in outcome.reports.values():
            screen.result(report)
    return outcome.exit_code


@command("rebuild", PIPELINE_PANEL)
def rebuild_command(
    screen: Screen,
    release: FolderArgument,
    out: FolderArgument,
    base: Annotated[Path | None, typer.Option("--base", help="Folder of the raw model.")] = None,
    diff: Annotated[Path | None, typer.Option("--diff", help="Folder of the weight diff.")] = None,
    calibration: Annotated[
        list[Path] | None,
        typer.Option("--calibration", help="Calibration text file; repeatable."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Run finished stages again.")] = False,
    restart: RestartOption = False,
) -> ExitCode:
    """Rebuilds the weights of a release from base and diff, and compares them byte for byte."""
    from camelpress.pipeline.rebuild import rebuild_release as work

    report = work(
        release,
        out,
        base=base,
        diff=diff,
        calibration=calibration or (),
        force=force,
        restart=restart,
    )
    screen.result(report)
    return report.exit_code


@command("demo", PIPELINE_PANEL)
def demo_command(
    screen: Screen,
    out: Annotated[Path, typer.Argument(metavar="[DIR]")] = Path("camelpress-demo"),
    force: Annotated[bool, typer.Option("--force", help="Run finished stages again.")] = False,
    restart: RestartOption = False,
) -> ExitCode:
    """Runs the whole pipeline on an embedded tiny model, in less than a minute."""
    from camelpress.pipeline.demo import run_demo as work

    demo = work(out, force=force, restart=restart)
    if screen.json:
        screen.print_json(
            flatten_report(demo.outcome.validation)
            | {
                "round_to_nearest": flatten_report(demo.round_to_nearest),
                "report": str(demo.report_page),
            }
        )
        return demo.outcome.exit_code
    for report in demo.outcome.reports.values():
        screen.result(report)
    print_rows(
        screen.out,
        _demo_title(demo.outcome.validation),
        [
            ("GPTQ", _demo_metrics(demo.outcome.validation)),
            ("round to nearest", _demo_metrics(demo.round_to_nearest)),
            ("report", str(demo.report_page)),
            ("release", str(demo.recipe.out / "release")),
        ],
    )
    return demo.outcome.exit_code


def _demo_title(report: ValidationReport) -> str:
    candidate = with_precision(report.facts.candidate, "model")
    return f"{candidate} against the {with_precision(report.facts.reference, 'reference')}"


def _demo_metrics(report: ValidationReport) -> str:
    ratio, kl = (METRICS[name].value(report.facts) for name in ("perplexity_ratio", "kl_mean"))
    return f"perplexity ratio {ratio:.5f}, KL {kl:.5f} nats, {report.verdict}"
