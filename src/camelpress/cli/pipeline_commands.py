"""All stages of a recipe, again from a release, or on a tiny model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from camelpress.cli.command import RUNS, Folder, Restart, command
from camelpress.cli.console import Screen, flat, rows
from camelpress.core.exit_codes import ExitCode
from camelpress.reporting.model_precision import titled
from camelpress.reporting.stage_report import Report


@command("run", RUNS)
def run(
    screen: Screen,
    recipe: Annotated[Path, typer.Argument(show_default=False)],
    override: Annotated[
        list[str] | None,
        typer.Option("-o", "--override", help="section.key=value over the recipe; repeatable."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Run finished stages again.")] = False,
    restart: Restart = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show commands, files and bytes; do nothing.")
    ] = False,
) -> ExitCode:
    """All stages of a recipe in order; finished ones are skipped while nothing changed."""
    from camelpress.pipeline import run as pipeline
    from camelpress.pipeline.recipe import read

    if dry_run:
        from camelpress.pipeline.plan import plan

        screen.plan([asdict(step) for step in plan(read(recipe, override or ()))])
        return ExitCode.DONE
    outcome = pipeline.run(read(recipe, override or ()), force=force, restart=restart)
    if screen.json:
        screen.emit(
            {
                "verdict": outcome.verdict,
                "skipped": outcome.skipped,
                "stages": {name: flat(report) for name, report in outcome.reports.items()},
            }
        )
    else:
        for report in outcome.reports.values():
            screen.result(report)
    return outcome.exit_code


@command("rebuild", RUNS)
def rebuild(
    screen: Screen,
    release: Folder,
    out: Folder,
    base: Annotated[Path | None, typer.Option("--base", help="The raw model.")] = None,
    diff: Annotated[Path | None, typer.Option("--diff", help="The weight diff.")] = None,
    calibration: Annotated[
        list[Path] | None,
        typer.Option("--calibration", help="A text that it was calibrated with; repeatable."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Run finished stages again.")] = False,
    restart: Restart = False,
) -> ExitCode:
    """The weights of a release, made again from base and diff and compared byte for byte."""
    from camelpress.pipeline.rebuild import rebuild as work

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


@command("demo", RUNS)
def demo(
    screen: Screen,
    out: Annotated[Path, typer.Argument(metavar="[DIR]")] = Path("camelpress-demo"),
    force: Annotated[bool, typer.Option("--force", help="Run finished stages again.")] = False,
    restart: Restart = False,
) -> ExitCode:
    """The whole pipeline on an embedded tiny model, in less than a minute."""
    from camelpress.pipeline.demo import run as work

    shown = work(out, force=force, restart=restart)
    if screen.json:
        screen.emit(
            flat(shown.outcome.reports["validate"])
            | {"round_to_nearest": flat(shown.rounded), "report": str(shown.page)}
        )
        return shown.outcome.exit_code
    for report in shown.outcome.reports.values():
        screen.result(report)
    rows(
        screen.out,
        _title(shown.outcome.reports["validate"]),
        [
            ("GPTQ", _beside(shown.outcome.reports["validate"])),
            ("round to nearest", _beside(shown.rounded)),
            ("report", str(shown.page)),
            ("release", str(shown.recipe.out / "release")),
        ],
    )
    return shown.outcome.exit_code


def _title(report: Report) -> str:
    candidate, reference = (report.facts[side] for side in ("candidate", "reference"))
    return f"{titled(candidate, 'model')} against the {titled(reference, 'reference')}"


def _beside(report: Report) -> str:
    facts = report.facts
    return (
        f"perplexity ratio {facts['perplexity_ratio']:.5f}, KL {facts['kl_mean']:.5f} nats, "
        f"{report.verdict}"
    )
