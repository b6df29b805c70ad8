"""The stages, each by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from camelpress import api
from camelpress.cli.command import STAGE_PANEL, FolderArgument, ForceOption, RestartOption, command
from camelpress.cli.console import Screen
from camelpress.convert.settings import ExportSettings, MakeDiffSettings, RecoverSettings
from camelpress.core.exit_codes import ExitCode
from camelpress.publish.settings import Publish
from camelpress.quantize.settings import QuantizeSettings
from camelpress.validate.settings import StoreSettings, Validate


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
    """Recovers the tuned model from base + diff, streamed tensor by tensor."""
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
    """The inverse of recover: tuned - base, proved to come back bit for bit."""
    from camelpress.convert.inputs.meta_checkpoint import open_base
    from camelpress.convert.recover.make_diff import make_diff as work
    from camelpress.core.checkpoint.checkpoint import Checkpoint

    chosen = MakeDiffSettings.parse(options, source="make-diff")
    screen.result(
        work(open_base(raw), Checkpoint.open(tuned), out, chosen, force=force, restart=restart)
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
    """4-bit GPTQ checkpoint, calibrated block by block."""
    screen.result(api.quantize(model, out=out, force=force, restart=restart, **options))
    return ExitCode.DONE


@command("validate", STAGE_PANEL, Validate)
def validate_command(
    screen: Screen,
    reference: FolderArgument,
    candidate: FolderArgument,
    options: dict[str, Any],
    out: Annotated[Path, typer.Option("--out", help="Folder for the reports.")] = Path(
        "validation"
    ),
    gate: Annotated[
        Path | None, typer.Option("--gate", help="Thresholds (YAML) that decide the exit code.")
    ] = None,
    force: ForceOption = False,
    restart: RestartOption = False,
) -> ExitCode:
    """Perplexity, KL divergence and agreement against the model before quantization, and a gate.

    REFERENCE is that model, or a store of its predictions.
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
    """A reference's predictions, computed once: validate takes them in its place."""
    from camelpress.core.checkpoint.checkpoint import Checkpoint
    from camelpress.validate.store.build_store import build_store as work

    chosen = StoreSettings.parse(options, source="store")
    screen.result(work(Checkpoint.open(reference), out, chosen, force=force, restart=restart))
    return ExitCode.DONE


@command("publish", STAGE_PANEL, Publish)
def publish_command(
    screen: Screen,
    candidate: FolderArgument,
    options: dict[str, Any],
    report: Annotated[Path, typer.Option("--report", help="Folder that validate wrote.")],
    force: ForceOption = False,
) -> ExitCode:
    """A candidate that passed its gate, with card, checksums and licences, here or on the hub."""
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
    """A packed checkpoint in another layout: the same codes and scales, proved layer by layer."""
    from camelpress.convert.export.export_checkpoint import export as work
    from camelpress.core.checkpoint.checkpoint import Checkpoint

    chosen = ExportSettings.parse(options, source="export")
    screen.result(work(Checkpoint.open(checkpoint), out, chosen, force=force))
    return ExitCode.DONE
