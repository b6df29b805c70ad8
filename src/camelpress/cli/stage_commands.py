"""Runs single stages from the command line."""

from __future__ import annotations

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
from camelpress.validate.settings import StoreSettings, ValidateSettings


@command("recover", STAGE_PANEL, RecoverSettings)
def recover_command(
    screen: Screen,
    raw: FolderArgument,
    diff: FolderArgument,
    out: FolderArgument,
    options: dict[str, Any],
    force: ForceOption = False,
    restart: RestartOption = False,
) -> ExitCode:
    """Recovers the 16-bit model from a base and a diff, one tensor at a time."""
    screen.result(api.recover(raw, diff, out=out, force=force, restart=restart, **options))
    return ExitCode.DONE


@command("make-diff", STAGE_PANEL, MakeDiffSettings)
def make_diff_command(
    screen: Screen,
    raw: FolderArgument,
    tuned: FolderArgument,
    out: FolderArgument,
    options: dict[str, Any],
    force: ForceOption = False,
    restart: RestartOption = False,
) -> ExitCode:
    """Makes the weight diff, tuned - base, and proves that recover returns the exact bits."""
    from camelpress.convert.inputs.meta_checkpoint import open_base
    from camelpress.convert.recover.make_diff import make_diff as work
    from camelpress.core.checkpoint.checkpoint import Checkpoint

    settings = MakeDiffSettings.parse(options, source="make-diff")
    screen.result(
        work(open_base(raw), Checkpoint.open(tuned), out, settings, force=force, restart=restart)
    )
    return ExitCode.DONE


@command("quantize", STAGE_PANEL, QuantizeSettings)
def quantize_command(
    screen: Screen,
    model: FolderArgument,
    out: FolderArgument,
    options: dict[str, Any],
    force: ForceOption = False,
    restart: RestartOption = False,
) -> ExitCode:
    """Quantizes a model to a 4-bit GPTQ checkpoint, calibrated block by block."""
    screen.result(api.quantize(model, out=out, force=force, restart=restart, **options))
    return ExitCode.DONE


@command("validate", STAGE_PANEL, ValidateSettings)
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


@command("store", STAGE_PANEL, StoreSettings)
def store_command(
    screen: Screen,
    reference: FolderArgument,
    out: FolderArgument,
    options: dict[str, Any],
    force: ForceOption = False,
    restart: RestartOption = False,
) -> ExitCode:
    """Stores the predictions of a reference model, for use by validate in its place."""
    from camelpress.core.checkpoint.checkpoint import Checkpoint
    from camelpress.validate.store.build_store import build_store as work

    settings = StoreSettings.parse(options, source="store")
    screen.result(work(Checkpoint.open(reference), out, settings, force=force, restart=restart))
    return ExitCode.DONE


@command("publish", STAGE_PANEL, PublishSettings)
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


@command("export", STAGE_PANEL, ExportSettings)
def export_command(
    screen: Screen,
    checkpoint: FolderArgument,
    out: FolderArgument,
    options: dict[str, Any],
    force: ForceOption = False,
) -> ExitCode:
    """Exports a packed checkpoint to another format, with equal codes and scales per layer."""
    from camelpress.convert.export.export_checkpoint import export as work
    from camelpress.core.checkpoint.checkpoint import Checkpoint

    settings = ExportSettings.parse(options, source="export")
    screen.result(work(Checkpoint.open(checkpoint), out, settings, force=force))
    return ExitCode.DONE
