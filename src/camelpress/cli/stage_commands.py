"""Runs single stages from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from camelpress.cli.command import STAGE_PANEL, FolderArgument, ForceOption, RestartOption, command
from camelpress.cli.console import Screen
from camelpress.convert.settings import ExportSettings, MakeDiffSettings, RecoverSettings
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
) -> int:
    """Recovers the 16-bit model from a base and a diff, one tensor at a time."""
    from camelpress.convert.inputs.meta_checkpoint import open_base
    from camelpress.convert.recover.run import recover as work
    from camelpress.core.checkpoint.checkpoint import Checkpoint

    settings = RecoverSettings.parse(options, source="recover")
    screen.result(
        work(open_base(raw), Checkpoint.open(diff), out, settings, force=force, restart=restart)
    )
    return 0


@command("make-diff", STAGE_PANEL, MakeDiffSettings)
def make_diff_command(
    screen: Screen,
    raw: FolderArgument,
    tuned: FolderArgument,
    out: FolderArgument,
    options: dict[str, Any],
    force: ForceOption = False,
    restart: RestartOption = False,
) -> int:
    """Makes the weight diff, tuned - base, and proves that recover returns the exact bits."""
    from camelpress.convert.inputs.meta_checkpoint import open_base
    from camelpress.convert.recover.make_diff import make_diff as work
    from camelpress.core.checkpoint.checkpoint import Checkpoint

    settings = MakeDiffSettings.parse(options, source="make-diff")
    screen.result(
        work(open_base(raw), Checkpoint.open(tuned), out, settings, force=force, restart=restart)
    )
    return 0


@command("quantize", STAGE_PANEL, QuantizeSettings)
def quantize_command(
    screen: Screen,
    model: FolderArgument,
    out: FolderArgument,
    options: dict[str, Any],
    force: ForceOption = False,
    restart: RestartOption = False,
) -> int:
    """Quantizes a model to a 4-bit GPTQ checkpoint, calibrated block by block."""
    from camelpress.core.checkpoint.checkpoint import Checkpoint
    from camelpress.quantize.run import run as work

    settings = QuantizeSettings.parse(options, source="quantize")
    screen.result(work(Checkpoint.open(model), out, settings, force=force, restart=restart))
    return 0


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
        Path | None,
        typer.Option("--gate", help="YAML file with the thresholds of the verdict and exit code."),
    ] = None,
    force: ForceOption = False,
    restart: RestartOption = False,
) -> int:
    """Measures perplexity, KL divergence and agreement against the reference, and applies a gate.

    REFERENCE is the model before quantization, or a store of its predictions.
    """
    from camelpress.core.checkpoint.checkpoint import Checkpoint
    from camelpress.validate.gate.gate_judge import read_gate
    from camelpress.validate.run import run as work
    from camelpress.validate.store.prediction_store import PredictionStore

    if gate is not None:
        options["gate"] = read_gate(gate).model_dump()
    settings = Validate.parse(options, source="validate")
    source = (
        PredictionStore.open(reference)
        if PredictionStore.exists_at(reference)
        else Checkpoint.open(reference)
    )
    report = work(source, Checkpoint.open(candidate), out, settings, force=force, restart=restart)
    screen.result(report)
    if not screen.json:
        screen.line(f"report: {out / 'report.html'}")
    return report.verdict.exit_code if report.verdict else 3


@command("store", STAGE_PANEL, StoreSettings)
def store_command(
    screen: Screen,
    reference: FolderArgument,
    out: FolderArgument,
    options: dict[str, Any],
    force: ForceOption = False,
    restart: RestartOption = False,
) -> int:
    """Stores the predictions of a reference model, for use by validate in its place."""
    from camelpress.core.checkpoint.checkpoint import Checkpoint
    from camelpress.validate.store.build_store import build_store as work

    settings = StoreSettings.parse(options, source="store")
    screen.result(work(Checkpoint.open(reference), out, settings, force=force, restart=restart))
    return 0


@command("publish", STAGE_PANEL, Publish)
def publish_command(
    screen: Screen,
    candidate: FolderArgument,
    options: dict[str, Any],
    report: Annotated[Path, typer.Option("--report", help="Report folder of validate.")],
    force: ForceOption = False,
) -> int:
    """Publishes a validated candidate with card, checksums and licences, locally or remotely."""
    from camelpress.publish.upload import publish_release as work

    settings = Publish.parse(options, source="publish")
    screen.result(work(candidate, report, settings, force=force))
    return 0


@command("export", STAGE_PANEL, ExportSettings)
def export_command(
    screen: Screen,
    checkpoint: FolderArgument,
    out: FolderArgument,
    options: dict[str, Any],
    force: ForceOption = False,
) -> int:
    """Exports a packed checkpoint to another format, with equal codes and scales per layer."""
    from camelpress.convert.export.export_checkpoint import export as work
    from camelpress.core.checkpoint.checkpoint import Checkpoint

    settings = ExportSettings.parse(options, source="export")
    screen.result(work(Checkpoint.open(checkpoint), out, settings, force=force))
    return 0
