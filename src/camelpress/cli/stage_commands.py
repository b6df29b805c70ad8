"""Runs single stages from the command line."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any

import typer

from camelpress import api
from camelpress.cli.command import STAGE_PANEL, FolderArgument, ForceOption, RestartOption, command
from camelpress.cli.console import Screen
from camelpress.convert.settings import ExportSettings, MakeDiffSettings, RecoverSettings
from camelpress.core.exit_codes import ExitCode
from camelpress.publish.settings import PublishSettings
from camelpress.quantize.settings import QuantizeSettings
from camelpress.reporting.stage_report import Report
from camelpress.validate.settings import StoreSettings, ValidateSettings

FLAGS = {"force": ForceOption, "restart": RestartOption}


def stage_command(
    stage: Callable[..., Report], *inputs: str, summary: str
) -> Callable[..., ExitCode]:
    """Returns the command of a stage with input folders, an output folder and settings.

    Args:
        stage: function of the Python interface; it decides which of `FLAGS` the command has.
        inputs: names of the input folders in the help.
        summary: help text of the command.
    """

    def work(screen: Screen, out: Path, options: dict[str, Any], **values: Any) -> ExitCode:
        folders = [values.pop(name) for name in inputs]
        screen.result(stage(*folders, out=out, **values, **options))
        return ExitCode.DONE

    folders = [
        Parameter(name, Parameter.KEYWORD_ONLY, annotation=FolderArgument)
        for name in (*inputs, "out")
    ]
    flags = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=False, annotation=FLAGS[name])
        for name in FLAGS
        if name in signature(stage).parameters
    ]
    work.__signature__ = Signature([*folders, *flags])  # type: ignore[attr-defined]
    work.__doc__ = summary
    return work


def validate_command(
    screen: Screen,
    reference: FolderArgument,
    candidate: FolderArgument,
    options: dict[str, Any],
    out: Annotated[Path, typer.Option("--out", help="Folder for the reports.")] = Path(
        "validation"
    ),
    gate: Annotated[
        Path | None,
        typer.Option("--gate", help="YAML file with the thresholds of the verdict and exit code."),
    ] = None,
    force: ForceOption = False,
    restart: RestartOption = False,
) -> ExitCode:
    """Measures perplexity, KL divergence and agreement against the reference, and applies a gate.

    REFERENCE is the model before quantization, or a store of its predictions.
    """
    report = api.validate(
        reference, candidate, out=out, gate=gate, force=force, restart=restart, **options
    )
    screen.result(report)
    if not screen.json:
        screen.line(f"report: {out / 'report.html'}")
    return report.exit_code


def publish_command(
    screen: Screen,
    candidate: FolderArgument,
    options: dict[str, Any],
    report: Annotated[Path, typer.Option("--report", help="Report folder of validate.")],
    force: ForceOption = False,
) -> ExitCode:
    """Publishes a validated candidate with card, checksums and licences, locally or remotely."""
    screen.result(api.publish(candidate, report, force=force, **options))
    return ExitCode.DONE


# fmt: off
STAGE_COMMANDS = (  # in the order of the help
    ("recover", RecoverSettings, stage_command(
        api.recover, "raw", "diff",
        summary="Recovers the 16-bit model from a base and a diff, one tensor at a time.",
    )),
    ("make-diff", MakeDiffSettings, stage_command(
        api.make_diff, "raw", "tuned",
        summary="Makes the weight diff, tuned - base, and proves that recover returns the exact "
        "bits.",
    )),
    ("quantize", QuantizeSettings, stage_command(
        api.quantize, "model",
        summary="Quantizes a model to a 4-bit GPTQ checkpoint, calibrated block by block.",
    )),
    ("validate", ValidateSettings, validate_command),
    ("store", StoreSettings, stage_command(
        api.store, "reference",
        summary="Stores the predictions of a reference model, for use by validate in its place.",
    )),
    ("publish", PublishSettings, publish_command),
    ("export", ExportSettings, stage_command(
        api.export, "checkpoint",
        summary="Exports a packed checkpoint to another format, with equal codes and scales per "
        "layer.",
    )),
)
# fmt: on

for _name, _settings, _work in STAGE_COMMANDS:
    command(_name, STAGE_PANEL, _settings)(_work)
