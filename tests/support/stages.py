"""The stages on folders, as the command line runs them, with options that fit the pico model."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pico
from camelpress.convert.inputs.meta_checkpoint import open_base
from camelpress.convert.recover import make_diff as difference
from camelpress.convert.recover import run as convert
from camelpress.convert.settings import MakeDiffSettings, RecoverSettings
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.quantize import run as quantization
from camelpress.quantize.settings import QuantizeSettings
from camelpress.reporting.stage_report import Report
from camelpress.validate import run as validation
from camelpress.validate.settings import ValidateSettings


def recover(
    base: Path,
    diff: Path,
    out: Path,
    *,
    force: bool = False,
    restart: bool = False,
    **options: Any,
) -> Report:
    """base + diff."""
    settings = RecoverSettings.parse(options, source="test")
    return convert.recover(
        open_base(base), Checkpoint.open(diff), out, settings, force=force, restart=restart
    )


def make_diff(base: Path, tuned: Path, out: Path, *, force: bool = False, **options: Any) -> Report:
    """tuned - base."""
    settings = MakeDiffSettings.parse(options, source="test")
    return difference.make_diff(open_base(base), Checkpoint.open(tuned), out, settings, force=force)


def quantize(
    model: Path,
    out: Path,
    *calibration: Path,
    force: bool = False,
    restart: bool = False,
    **options: Any,
) -> Report:
    """4 bits in groups of 32, calibrated on two sequences."""
    values = {"group_size": 32, "sequence_length": 64, "samples": 2, "calibration": calibration}
    settings = QuantizeSettings.parse(values | options, source="test")
    return quantization.run(Checkpoint.open(model), out, settings, force=force, restart=restart)


def validate(
    reference: Path,
    candidate: Path,
    out: Path,
    *texts: Path,
    force: bool = False,
    restart: bool = False,
    **options: Any,
) -> Report:
    """The first 200 tokens of each text; a model against itself is held against its fp32 copy."""
    if reference == candidate:
        candidate = widened(reference)
    values = {"text": texts, "sequence_length": 64, "max_tokens": 200}
    settings = ValidateSettings.parse(values | options, source="test")
    return validation.run(
        Checkpoint.open(reference),
        Checkpoint.open(candidate),
        out,
        settings,
        force=force,
        restart=restart,
    )


@cache
def widened(model: Path) -> Path:
    """Returns the fp32 copy of a plain model, under the same name in a folder of its own."""
    return pico.write_widened(Path(mkdtemp(dir=model.parent)) / model.name, model)
