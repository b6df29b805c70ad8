"""All stages of a recipe, again from a release, or on a tiny model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from camelpress.cli.command import PIPELINE_PANEL, FolderArgument, RestartOption, command
from camelpress.cli.console import Screen, flatten_report, print_rows
from camelpress.core.exit_codes import ExitCode
from camelpress.reporting.model_precision import with_precision
from camelpress.reporting.stage_report import Report


@command("run", PIPELINE_PANEL)
def run_command(
    screen: Screen,
    recipe: Annotated[Path, typer.Argument(show_default=False)],
    override: Annotated[
        list[str] | None,
        typer.Option("-o", "--override", help="section.key=value over the recipe; repeatable."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Run finished stages again.")] = False,
    restart: RestartOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show commands, files and bytes; do nothing.")
    ] = False,
) -> ExitCode:
    """All stages of a recipe in order; finished ones are skipped while nothing changed."""
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
    base: Annotated[Path | None, typer.Option("--base", help="The raw model.")] = None,
    diff: Annotated[Path | None, typer.Option("--diff", help="The weight diff.")] = None,
    calibration: Annotated[
        list[Path] | None,
        typer.Option("--calibration", help="A text that it was calibrated with; repeatable."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Run finished stages again.")] = False,
    restart: RestartOption = False,
) -> ExitCode:
    """The weights of a release, made again from base and diff and compared byte for byte."""
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
    """The whole pipeline on an embedded tiny model, in less than a minute."""
    from camelpress.pipeline.demo import run_demo as work

    shown = work(out, force=force, restart=restart)
    if screen.json:
        screen.print_json(
            flatten_report(shown.outcome.reports["validate"])
            | {
                "round_to_nearest": flatten_report(shown.round_to_nearest),
                "report": str(shown.report_page),
            }
        )
        return shown.outcome.exit_code
    for report in shown.outcome.reports.values():
        screen.result(report)
    print_rows(
        screen.out,
        _demo_title(shown.outcome.reports["validate"]),
        [
            ("GPTQ", _demo_metrics(shown.outcome.reports["validate"])),
            ("round to nearest", _demo_metrics(shown.round_to_nearest)),
            ("report", str(shown.report_page)),
            ("release", str(shown.recipe.out / "release")),
        ],
    )
    return shown.outcome.exit_code


def _demo_title(report: Report) -> str:
    candidate, reference = (report.facts[side] for side in ("candidate", "reference"))
    return (
        f"{with_precision(candidate, 'model')} against the {with_precision(reference, 'reference')}"
    )


def _demo_metrics(report: Report) -> str:
    facts = report.facts
    return (
        f"perplexity ratio {facts['perplexity_ratio']:.5f}, KL {facts['kl_mean']:.5f} nats, "
        f"{report.verdict}"
    )
