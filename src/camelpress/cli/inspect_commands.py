"""Inspects and checks checkpoints, reports and releases from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from camelpress.cli.command import INSPECT_PANEL, FolderArgument, ForceOption, command
from camelpress.cli.console import Screen, print_rows
from camelpress.core.exit_codes import ExitCode
from camelpress.validate.settings import ReportSettings


@command("inspect", INSPECT_PANEL)
def inspect_command(
    screen: Screen,
    checkpoint: FolderArgument,
    engines: Annotated[
        list[str] | None,
        typer.Option(
            "--for",
            metavar="vllm|sglang|tgi|exllama|marlin|all",
            help="Check the requirements of an inference engine; repeatable, or comma-separated.",
        ),
    ] = None,
) -> ExitCode:
    """Shows tensors, dtypes, sizes, quantization, tokenizer and chat template of a checkpoint."""
    from camelpress.convert.inputs.meta_checkpoint import open_base
    from camelpress.reporting.checkpoint_summary import describe_checkpoint

    if engines:
        return _inspect_compatibility(screen, checkpoint, engines)
    summary = describe_checkpoint(open_base(checkpoint))
    if screen.json:
        screen.print_json(summary)
    else:
        print_rows(
            screen.out,
            str(checkpoint),
            [(name, json.dumps(value)) for name, value in summary.items() if name != "tensors"],
        )
        for tensor in summary["tensors"]:
            screen.line(f"  {tensor['name']}  {tensor['dtype']} {tensor['shape']}")
    return ExitCode.DONE


def _inspect_compatibility(screen: Screen, folder: Path, names: list[str]) -> ExitCode:
    from camelpress.compat.compatibility import check_compatibility, parse_engine_names
    from camelpress.core.checkpoint.checkpoint import Checkpoint
    from camelpress.reporting.checkpoint_summary import summarize_checkpoint
    from camelpress.reporting.verdict import Verdict

    engine_names = parse_engine_names(names)
    checkpoint = Checkpoint.open(folder)
    compatibility = check_compatibility(checkpoint, engine_names)
    if screen.json:
        screen.print_json(summarize_checkpoint(checkpoint).record | compatibility)
    else:
        for engine in compatibility["engines"]:
            screen.engine_result(engine)
    return Verdict(compatibility["verdict"]).exit_code


@command("gate", INSPECT_PANEL, ReportSettings)
def gate_command(
    screen: Screen,
    report: Annotated[Path, typer.Argument(help="Path of report.json, or its folder.")],
    options: dict[str, Any],
    thresholds: Annotated[
        Path | None,
        typer.Option("--gate", help="YAML file with thresholds; by default those of the report."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the report with the new verdict.")
    ] = None,
    force: ForceOption = False,
) -> ExitCode:
    """Judges a validation report again with other thresholds, without running the models."""
    from camelpress.validate.gate.gate_judge import read_gate
    from camelpress.validate.gate.report_files import regate_report, save_report

    settings = ReportSettings.parse(options, source="gate")
    new_report = regate_report(report, None if thresholds is None else read_gate(thresholds))
    if out is not None:
        save_report(new_report, out, settings, source=report, force=force)
    screen.result(new_report)
    return new_report.exit_code


@command("flips", INSPECT_PANEL)
def flips_command(
    screen: Screen,
    report: Annotated[Path, typer.Argument(help="Path of report.json, or its folder.")],
    task: Annotated[
        str | None, typer.Option("--task", help="Show items of this task only.")
    ] = None,
) -> ExitCode:
    """Shows benchmark items with different scores of the two models, side by side."""
    from camelpress.reporting import validation_report
    from camelpress.reporting.tables.validation_tables import flip_row
    from camelpress.validate.benchmarks.samples import read_flips as benchmark_flips

    folder = report if report.is_dir() else report.parent
    items = [*benchmark_flips(validation_report.read_validation(report), folder, task)]
    if screen.json:
        screen.print_json({"flips": items})
    for flip in () if screen.json else items:
        screen.flip(flip["task"], flip_row(flip))
    return ExitCode.DONE


@command("verify", INSPECT_PANEL)
def verify_command(
    screen: Screen,
    release: FolderArgument,
    key: Annotated[
        Path | None, typer.Option("--key", help="Public key of the expected signature.")
    ] = None,
) -> ExitCode:
    """Verifies all checksums of a release, in a folder or at hf:org/name@revision."""
    from camelpress.publish.verify_release import verify_release_at as work

    report = work(release, key)
    screen.result(report)
    return report.exit_code


@command("diff", INSPECT_PANEL)
def diff_command(screen: Screen, one: FolderArgument, other: FolderArgument) -> ExitCode:
    """Compares config, tensors, metrics and files of two models; exits with 1 if any differ."""
    from camelpress.publish.release_diff import diff_releases

    report = diff_releases(one, other)
    screen.result(report)
    return report.exit_code


@command("card", INSPECT_PANEL)
def card_command(
    screen: Screen,
    folder: FolderArgument,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 if the card contradicts the files.")
    ] = False,
) -> ExitCode:
    """Prints the model card of a release; --check compares it with config and reports."""
    from camelpress.publish.card import model_card as cards

    if not check:
        text = cards.read_release_card(folder)
        if screen.json:
            screen.print_json({"card": text})
        else:
            screen.line(text)
        return ExitCode.DONE
    report = cards.check_card(folder)
    screen.result(report)
    return report.exit_code


@command("schema", INSPECT_PANEL)
def schema_command(
    screen: Screen,
    of: Annotated[
        Literal["recipe", "gate", "report"], typer.Argument(help="Kind of schema.", metavar="[OF]")
    ] = "recipe",
) -> ExitCode:
    """Prints the JSON Schema of a recipe, a gate or a validation report."""
    from camelpress.pipeline.recipe import Recipe
    from camelpress.reporting import validation_report
    from camelpress.validate.settings import Gate

    schemas = {
        "recipe": Recipe.model_json_schema,
        "gate": Gate.model_json_schema,
        "report": validation_report.validation_schema,
    }
    screen.print_json(schemas[of]())
    return ExitCode.DONE
