"""The stages, each by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from camelpress import api
from camelpress.cli.command import STAGES, Folder, Force, Restart, command
from camelpress.cli.console import Screen
from camelpress.convert.settings import Export, MakeDiff, Recover
from camelpress.core.exit_codes import ExitCode
from camelpress.publish.settings import Publish
from camelpress.quantize.settings import Quantize
from camelpress.validate.settings import Keep, Validate


@command("recover", STAGES, Recover)
def recover(
    screen: Screen,
    raw: Folder,
    diff: Folder,
    out: Folder,
    options: dict[str, Any],
    force: Force = False,
    restart: Restart = False,
) -> ExitCode:
    """Recovers the tuned model from base + diff, streamed tensor by tensor."""
    screen.result(api.recover(raw, diff, out=out, force=force, restart=restart, **options))
    return ExitCode.DONE


@command("make-diff", STAGES, MakeDiff)
def make_diff(
    screen: Screen,
    raw: Folder,
    tuned: Folder,
    out: Folder,
    options: dict[str, Any],
    force: Force = False,
    restart: Restart = False,
) -> ExitCode:
    """The inverse of recover: tuned - base, proved to come back bit for bit."""
    from camelpress.convert.inputs.meta_checkpoint import open_base
    from camelpress.convert.recover.make_diff import make_diff as work
    from camelpress.core.checkpoint.checkpoint import Checkpoint

    chosen = MakeDiff.parse(options, source="make-diff")
    screen.result(
        work(open_base(raw), Checkpoint.open(tuned), out, chosen, force=force, restart=restart)
    )
    return ExitCode.DONE


@command("quantize", STAGES, Quantize)
def quantize(
    screen: Screen,
    model: Folder,
    out: Folder,
    options: dict[str, Any],
    force: Force = False,
    restart: Restart = False,
) -> ExitCode:
    """4-bit GPTQ checkpoint, calibrated block by block."""
    screen.result(api.quantize(model, out=out, force=force, restart=restart, **options))
    return ExitCode.DONE


@command("validate", STAGES, Validate)
def validate(
    screen: Screen,
    reference: Folder,
    candidate: Folder,
    options: dict[str, Any],
    out: Annotated[Path, typer.Option("--out", help="Folder for the reports.")] = Path(
        "validation"
    ),
    gate: Annotated[
        Path | None, typer.Option("--gate", help="Thresholds (YAML) that decide the exit code.")
    ] = None,
    force: Force = False,
    restart: Restart = False,
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


@command("store", STAGES, Keep)
def store(
    screen: Screen,
    reference: Folder,
    out: Folder,
    options: dict[str, Any],
    force: Force = False,
    restart: Restart = False,
) -> ExitCode:
    """A reference's predictions, computed once: validate takes them in its place."""
    from camelpress.core.checkpoint.checkpoint import Checkpoint
    from camelpress.validate.store.build_store import run as work

    chosen = Keep.parse(options, source="store")
    screen.result(work(Checkpoint.open(reference), out, chosen, force=force, restart=restart))
    return ExitCode.DONE


@command("publish", STAGES, Publish)
def publish(
    screen: Screen,
    candidate: Folder,
    options: dict[str, Any],
    report: Annotated[Path, typer.Option("--report", help="Folder that validate wrote.")],
    force: Force = False,
) -> ExitCode:
    """A candidate that passed its gate, with card, checksums and licences, here or on the hub."""
    screen.result(api.publish(candidate, report, force=force, **options))
    return ExitCode.DONE


@command("export", STAGES, Export)
def export(
    screen: Screen, checkpoint: Folder, out: Folder, options: dict[str, Any], force: Force = False
) -> ExitCode:
    """A packed checkpoint in another layout: the same codes and scales, proved layer by layer."""
    from camelpress.convert.export.export_checkpoint import export as work
    from camelpress.core.checkpoint.checkpoint import Checkpoint

    chosen = Export.parse(options, source="export")
    screen.result(work(Checkpoint.open(checkpoint), out, chosen, force=force))
    return ExitCode.DONE
