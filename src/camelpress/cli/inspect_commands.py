"""Looking at what is there, and checking it."""

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
            help="Whether that engine can run it, requirement by requirement; repeatable, or a "
            "list with commas.",
        ),
    ] = None,
) -> ExitCode:
    """What a checkpoint is: tensors, dtypes, sizes, quantization, tokenizer, template."""
    from camelpress.convert.inputs.meta_checkpoint import open_base
    from camelpress.reporting.checkpoint_summary import describe_checkpoint

    if engines:
        return _inspect_compatibility(screen, checkpoint, engines)
    told = describe_checkpoint(open_base(checkpoint))
    if screen.json:
        screen.print_json(told)
    else:
        print_rows(
            screen.out,
            str(checkpoint),
            [(name, json.dumps(value)) for name, value in told.items() if name != "tensors"],
        )
        for tensor in told["tensors"]:
            screen.line(f"  {tensor['name']}  {tensor['dtype']} {tensor['shape']}")
    return ExitCode.DONE


def _inspect_compatibility(screen: Screen, folder: Path, names: list[str]) -> ExitCode:
    from camelpress.compat.compatibility import check_compatibility, parse_engine_names
    from camelpress.core.checkpoint.checkpoint import Checkpoint
    from camelpress.reporting.checkpoint_summary import summarize_checkpoint
    from camelpress.reporting.stage_report import Verdict

    wanted = parse_engine_names(names)
    checkpoint = Checkpoint.open(folder)
    told = check_compatibility(checkpoint, wanted)
    if screen.json:
        screen.print_json(summarize_checkpoint(checkpoint) | told)
    else:
        for engine in told["engines"]:
            screen.engine_result(engine)
    return Verdict(told["verdict"]).exit_code


@command("gate", INSPECT_PANEL, ReportSettings)
def gate_command(
    screen: Screen,
    report: Annotated[Path, typer.Argument(help="report.json, or its folder.")],
    options: dict[str, Any],
    thresholds: Annotated[
        Path | None,
        typer.Option("--gate", help="Thresholds (YAML); without, those of the report itself."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the report with its new verdict.")
    ] = None,
    force: ForceOption = False,
) -> ExitCode:
    """Judge a validation report again: other thresholds, the same figures, no models."""
    from camelpress.validate.gate.gate_judge import read_gate
    from camelpress.validate.gate.report_files import regate_report, save_report

    chosen = ReportSettings.parse(options, source="gate")
    judged = regate_report(report, None if thresholds is None else read_gate(thresholds))
    if out is not None:
        save_report(judged, out, chosen, source=report, force=force)
    screen.result(judged)
    return judged.exit_code


@command("flips", INSPECT_PANEL)
def flips_command(
    screen: Screen,
    report: Annotated[Path, typer.Argument(help="report.json, or its folder.")],
    task: Annotated[str | None, typer.Option("--task", help="Of this task only.")] = None,
) -> ExitCode:
    """The items of benchmarks that one model answered better than the other, side by side."""
    from camelpress.reporting.facts import validation_facts
    from camelpress.reporting.tables.validation_tables import flip_row
    from camelpress.validate.benchmarks.samples import read_flips as changed

    folder = report if report.is_dir() else report.parent
    found = [*changed(validation_facts.read_validation(report), folder, task)]
    if screen.json:
        screen.print_json({"flips": found})
    for flip in () if screen.json else found:
        screen.flip(flip["task"], flip_row(flip))
    return ExitCode.DONE


@command("verify", INSPECT_PANEL)
def verify_command(
    screen: Screen,
    release: FolderArgument,
    key: Annotated[
        Path | None, typer.Option("--key", help="Public key that it has to be signed with.")
    ] = None,
) -> ExitCode:
    """Check a release again, here or at hf:org/name[@revision]: every checksum, no file more."""
    from camelpress.publish.verify_release import verify_release_at as work

    report = work(release, key)
    screen.result(report)
    return report.exit_code


@command("diff", INSPECT_PANEL)
def diff_command(screen: Screen, one: FolderArgument, other: FolderArgument) -> ExitCode:
    """What differs between two releases or models: config, tensors, figures, files; 1 if any."""
    from camelpress.publish.release.release_diff import diff_releases

    report = diff_releases(one, other)
    screen.result(report)
    return report.exit_code


@command("card", INSPECT_PANEL)
def card_command(
    screen: Screen,
    folder: FolderArgument,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 where it is not what the files say.")
    ] = False,
) -> ExitCode:
    """The card of a release; with --check, held line by line against config and reports."""
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
        Literal["recipe", "gate", "report"], typer.Argument(help="Of what.", metavar="[OF]")
    ] = "recipe",
) -> ExitCode:
    """The JSON Schema of a recipe or a gate, for editors, or of a validation report."""
    from camelpress.pipeline.recipe import Recipe
    from camelpress.reporting.facts import validation_facts
    from camelpress.validate.settings import Gate

    schemas = {
        "recipe": Recipe.model_json_schema,
        "gate": Gate.model_json_schema,
        "report": validation_facts.validation_schema,
    }
    screen.print_json(schemas[of]())
    return ExitCode.DONE
