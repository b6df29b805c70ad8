"""The stage: a 16-bit checkpoint in, a packed one out, one decoder block in memory at a time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from camelpress.core import llama
from camelpress.core.blocks import StreamedModel, compute_dtype, pick_device
from camelpress.core.checkpoint import Checkpoint, companions
from camelpress.core.errors import CheckpointProblem, NumericsProblem, RecipeProblem
from camelpress.core.ngrams import FINGERPRINT
from camelpress.core.output import keep_apart, staged
from camelpress.core.packed import PARTS
from camelpress.core.progress import track
from camelpress.core.provenance import checkpoint_digest, sha256_file
from camelpress.core.report import Report, Stopwatch
from camelpress.core.sequences import Sequences
from camelpress.core.tokens import Tokenizer
from camelpress.core.writer import CheckpointWriter
from camelpress.quantize.block import Layer, quantize_block, round_block
from camelpress.quantize.calibrate import Calibration, draw
from camelpress.quantize.settings import Quantize
from camelpress.quantize.stored import AsStored, plan, stored, write_config

REPORT = "quantize-report.json"


def run(source: Checkpoint, out: Path, settings: Quantize, *, force: bool = False) -> Report:
    """Quantize the linear layers of all decoder blocks; embeddings, norms and head stay 16-bit.

    Args:
        source: 16-bit or fp32, of the LLaMA family.
        out: a folder that does not exist.
        settings: bits, grid, calibration.
        force: replace `out`.
    Raises:
        CheckpointProblem: already quantized, incomplete, or of another family.
        RecipeProblem: a group size that does not divide a width, no or too long calibration.
        NumericsProblem: a weight is not finite, or a Hessian has no Cholesky factor.
    """
    watch = Stopwatch()
    _refuse(source, out)
    device = pick_device(settings.device)
    dtype = compute_dtype(device, _dtype(source))
    model = StreamedModel(AsStored.of(source), device=device, dtype=dtype)
    planned = plan(model.checkpoint, model.blocks, settings)
    calibration = _calibration(model, settings)
    with staged(out, force=force) as folder, torch.inference_mode():
        layers = []
        with CheckpointWriter(folder, planned) as writer:
            for name in sorted(planned.keys() & source.tensors.keys()):
                writer.put(name, stored(source, name))
            for layer in _layers(model, calibration, settings):
                for part in PARTS:
                    writer.put(f"{layer.name}.{part}", getattr(layer.packed, part))
                layers.append(_told(layer))
        for name, path in companions(source.folder).items():
            shutil.copyfile(path, folder / name)
        write_config(folder, source, settings)
        if calibration:
            calibration.fingerprint.write(folder / FINGERPRINT)
        report = Report(
            stage="quantize",
            inputs={"source": checkpoint_digest(source.folder)} | _inputs(calibration),
            settings=settings.model_dump(mode="json", exclude={"calibration", "device"}),
            facts={
                "method": settings.method,
                "device": str(device),
                "calibration": _told_calibration(settings, calibration, folder),
                "rescues": sum(bool(layer["rescue"]) for layer in layers),
                "layers": layers,
            },
            cost=watch.cost(),
        )
        report.write(folder / REPORT)
    return report


def _layers(
    model: StreamedModel, calibration: Calibration | None, settings: Quantize
) -> Iterator[Layer]:
    """Solve block after block; each layer comes with its full name."""
    sequences = Sequences(calibration.sequences, limit=model.positions) if calibration else None
    hidden = model.embed(sequences) if sequences else None
    for number in track(range(model.blocks), "quantize"):
        block = model.block(number)
        if sequences is None or hidden is None:
            layers = round_block(block, settings)
        else:
            layers = quantize_block(model, block, sequences, hidden, settings)
        prefix = llama.BLOCK.format(number)
        try:
            for layer in layers:
                yield replace(layer, name=f"{prefix}.{layer.name}")
        except NumericsProblem as error:
            raise type(error)(f"{prefix}: {error.what}", next_step=error.next_step) from error


def _calibration(model: StreamedModel, settings: Quantize) -> Calibration | None:
    if settings.method == "rtn":
        return None
    if settings.sequence_length > model.positions:
        raise RecipeProblem(
            f"sequence_length {settings.sequence_length} exceeds the {model.positions} positions "
            f"of {model.checkpoint.folder}",
            next_step=f"use --sequence-length {model.positions} or less",
        )
    return draw(
        settings.calibration,
        Tokenizer.load(model.checkpoint.folder),
        samples=settings.samples,
        sequence_length=settings.sequence_length,
        mask=settings.calibration_mask,
        seed=settings.seed,
    )


def _refuse(source: Checkpoint, out: Path) -> None:
    if source.quantization is not None:
        raise CheckpointProblem(
            f"{source.folder} is already quantized", next_step="give the 16-bit checkpoint"
        )
    keep_apart(out, source.folder)


def _dtype(source: Checkpoint) -> torch.dtype:
    return source.info(f"{llama.EMBEDDING}.weight").dtype


def _told(layer: Layer) -> dict[str, Any]:
    return {
        "name": layer.name,
        "relative_error": layer.relative_error,
        "damp_percent": layer.damp_percent,
        "rescue": layer.rescue,
    }


def _inputs(calibration: Calibration | None) -> dict[str, str]:
    drawn = calibration.drawn if calibration else ()
    return {f"calibration:{each.name}": each.sha256 for each in drawn}


def _told_calibration(
    settings: Quantize, calibration: Calibration | None, folder: Path
) -> dict[str, Any] | None:
    if calibration is None:
        return None
    return {
        "format": "Tulu prompts, one conversation a sequence; plain text in full windows",
        "sequence_length": settings.sequence_length,
        **calibration.facts(),
        "fingerprint": {
            "name": FINGERPRINT,
            "sha256": sha256_file(folder / FINGERPRINT),
            "runs": len(calibration.fingerprint.hashes),
        },
    }
