"""The stages, each by itself."""

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
    """Recovers the tuned model from base + diff, streamed tensor by tensor."""
    from camelpress.convert.inputs.meta_checkpoint import open_base
    from camelpress.convert.recover.run import recover as work
    from camelpress.core.checkpoint.checkpoint import Checkpoint

    chosen = RecoverSettings.parse(options, source="recover")
    screen.result(
        work(open_base(raw), Checkpoint.open(diff), out, chosen, force=force, restart=restart)
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
    """The inverse of recover: tuned - base, proved to come back bit for bit."""
    from camelpress.convert.inputs.meta_checkpoint import open_base
    from camelpress.convert.recover.make_diff import make_diff as work
    from camelpress.core.checkpoint.checkpoint import Checkpoint

    chosen = MakeDiffSettings.parse(options, source="make-diff")
    screen.result(
        work(open_base(raw), Checkpoint.open(tuned), out, chosen, force=force, restart=restart)
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
    """4-bit GPTQ checkpoint, calibrated block by block."""
    from camelpress.core.checkpoint.checkpoint import Checkpoint
    from camelpress.quantize.run import run as work

    chosen = QuantizeSettings.parse(options, source="quantize")
    screen.result(work(Checkpoint.open(model), out, chosen, force=force, restart=restart))
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
        Path | None, typer.Option("--gate", help="Thresholds (YAML) that decide the exit code.")
    ] = None,
    force: ForceOption = False,
    restart: RestartOption = False,
) -> int:
    """Perplexity, KL divergence and agreement against the model before quantization, and a gate.

    REFERENCE is that model, or a store of its predictions.
    """
    from camelpress.core.checkpoint.checkpoint import Checkpoint
    from camelpress.validate.gate.gate_judge import read_gate
    from camelpress.validate.run import run as work
    from camelpress.validate.store.prediction_store import PredictionStore

    if gate is not None:
        options["gate"] = read_gate(gate).model_dump()
    chosen = Validate.parse(options, source="validate")
    source = (
        PredictionStore.open(reference)
        if PredictionStore.exists_at(reference)
        else Checkpoint.open(reference)
    )
    report = work(source, Checkpoint.open(candidate), out, chosen, force=force, restart=restart)
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
    """A reference's predictions, computed once: validate takes them in its place."""
    from camelpress.core.checkpoint.checkpoint import Checkpoint
    from camelpress.validate.store.build_store import build_store as work

    chosen = StoreSettings.parse(options, source="store")
    screen.result(work(Checkpoint.open(reference), out, chosen, force=force, restart=restart))
    return 0


@command("publish", STAGE_PANEL, Publish)
def publish_command(
    screen: Screen,
    candidate: FolderArgument,
    options: dict[str, Any],
    report: Annotated[Path, typer.Option("--report", help="Folder that validate wrote.")],
    force: ForceOption = False,
) -> int:
    """A candidate that passed its gate, with card, checksums and licences, here or on the hub."""
    from camelpress.publish.upload import publish_release as work

    chosen = Publish.parse(options, source="publish")
    screen.result(work(candidate, report, chosen, force=force))
    return 0


@command("export", STAGE_PANEL, ExportSettings)
def export_command(
    screen: Screen,
    checkpoint: FolderArgument,
    out: FolderArgument,
    options: dict[str, Any],
    force: ForceOption = False,
) -> int:
    """A packed checkpoint in another layout: the same codes and scales, proved layer by layer."""
    from camelpress.convert.export.export_checkpoint import export as work
    from camelpress.core.checkpoint.checkpoint import Checkpoint

    chosen = ExportSettings.parse(options, source="export")
    screen.result(work(Checkpoint.open(checkpoint), out, chosen, force=force))
    return 0
