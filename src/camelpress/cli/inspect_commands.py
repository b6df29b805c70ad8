"""Looking at what is there, and checking it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from camelpress.cli.command import LOOKS, Folder, Force, command
from camelpress.cli.console import Screen, rows
from camelpress.core.exit_codes import ExitCode
from camelpress.validate.settings import Reports


@command("inspect", LOOKS)
def inspect_(
    screen: Screen,
    checkpoint: Folder,
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
    from camelpress.reporting.checkpoint_summary import describe

    if engines:
        return _for_engines(screen, checkpoint, engines)
    told = describe(open_base(checkpoint))
    if screen.json:
        screen.emit(told)
    else:
        rows(
            screen.out,
            str(checkpoint),
            [(name, json.dumps(value)) for name, value in told.items() if name != "tensors"],
        )
        for tensor in told["tensors"]:
            screen.line(f"  {tensor['name']}  {tensor['dtype']} {tensor['shape']}")
    return ExitCode.DONE


def _for_engines(screen: Screen, folder: Path, names: list[str]) -> ExitCode:
    from camelpress.compat.compatibility import check, chosen
    from camelpress.core.checkpoint.checkpoint import Checkpoint
    from camelpress.reporting.checkpoint_summary import summary
    from camelpress.reporting.stage_report import Verdict

    wanted = chosen(names)
    checkpoint = Checkpoint.open(folder)
    told = check(checkpoint, wanted)
    if screen.json:
        screen.emit(summary(checkpoint) | told)
    else:
        for engine in told["engines"]:
            screen.engine(engine)
    return Verdict(told["verdict"]).exit_code


@command("gate", LOOKS, Reports)
def gate(
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
    force: Force = False,
) -> ExitCode:
    """Judge a validation report again: other thresholds, the same figures, no models."""
    from camelpress.validate.gate.gate_judge import read
    from camelpress.validate.gate.report_files import judge_again, save

    chosen = Reports.parse(options, source="gate")
    judged = judge_again(report, None if thresholds is None else read(thresholds))
    if out is not None:
        save(judged, out, chosen, source=report, force=force)
    screen.result(judged)
    return judged.exit_code


@command("flips", LOOKS)
def flips(
    screen: Screen,
    report: Annotated[Path, typer.Argument(help="report.json, or its folder.")],
    task: Annotated[str | None, typer.Option("--task", help="Of this task only.")] = None,
) -> ExitCode:
    """The items of benchmarks that one model answered better than the other, side by side."""
    from camelpress.reporting.facts import validation_facts
    from camelpress.reporting.tables.validation_tables import flip_row
    from camelpress.validate.benchmarks.samples import flips as changed

    folder = report if report.is_dir() else report.parent
    found = [*changed(validation_facts.read(report), folder, task)]
    if screen.json:
        screen.emit({"flips": found})
    for flip in () if screen.json else found:
        screen.flip(flip["task"], flip_row(flip))
    return ExitCode.DONE


@command("verify", LOOKS)
def verify(
    screen: Screen,
    release: Folder,
    key: Annotated[
        Path | None, typer.Option("--key", help="Public key that it has to be signed with.")
    ] = None,
) -> ExitCode:
    """Check a release again, here or at hf:org/name[@revision]: every checksum, no file more."""
    from camelpress.publish.verify_release import verify_at as work

    report = work(release, key)
    screen.result(report)
    return report.exit_code


@command("diff", LOOKS)
def diff(screen: Screen, one: Folder, other: Folder) -> ExitCode:
    """What differs between two releases or models: config, tensors, figures, files; 1 if any."""
    from camelpress.publish.release.release_diff import compare

    report = compare(one, other)
    screen.result(report)
    return report.exit_code


@command("card", LOOKS)
def card(
    screen: Screen,
    folder: Folder,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 where it is not what the files say.")
    ] = False,
) -> ExitCode:
    """The card of a release; with --check, held line by line against config and reports."""
    from camelpress.publish.card import model_card as cards

    if not check:
        text = cards.read(folder)
        if screen.json:
            screen.emit({"card": text})
        else:
            screen.line(text)
        return ExitCode.DONE
    report = cards.check(folder)
    screen.result(report)
    return report.exit_code


@command("schema", LOOKS)
def schema(
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
        "report": validation_facts.schema,
    }
    screen.emit(schemas[of]())
    return ExitCode.DONE
