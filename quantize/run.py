"""The stage: a 16-bit checkpoint in, a packed one out, one decoder block in memory at a time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from math import gcd
from pathlib import Path
from typing import Any

import torch

from camelpress import __version__
from camelpress.core import llama
from camelpress.core.blocks import StreamedModel, compute_dtype, pick_device
from camelpress.core.checkpoint import Checkpoint, companions
from camelpress.core.config import portable
from camelpress.core.errors import CheckpointProblem, NumericsProblem, RecipeProblem
from camelpress.core.output import keep_apart, staged, write_json
from camelpress.core.packed import slots
from camelpress.core.progress import track
from camelpress.core.provenance import checkpoint_digest, sha256_file
from camelpress.core.report import Report, Stopwatch
from camelpress.core.sequences import Sequences
from camelpress.core.tokens import Tokenizer
from camelpress.core.writer import CheckpointWriter, Slot
from camelpress.quantize.block import Layer, quantize_block, round_block
from camelpress.quantize.calibrate import Calibration, draw
from camelpress.quantize.settings import Quantize

REPORT = "quantize-report.json"
STORED = torch.float16  # of scales and of everything that is not quantized: what kernels expect
QUANTIZED = tuple(f".{linear.name}.weight" for linear in llama.LINEARS)


class AsStored(Checkpoint):
    """A source whose embeddings, norms and biases read as the output will hold them, in fp16.

    Calibration runs on it, so that the hidden states are those of the stored model.
    """

    @classmethod
    def of(cls, source: Checkpoint) -> AsStored:
        """The same folder, read that way."""
        return cls(source.folder, source.config, source.tensors)

    def read(self, name: str) -> torch.Tensor:
        """One whole tensor."""
        tensor = super().read(name)
        return tensor if name.endswith(QUANTIZED) else tensor.to(STORED)


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
    planned = _plan(model, settings)
    calibration = _calibration(model, settings)
    with staged(out, force=force) as folder, torch.inference_mode():
        layers = []
        with CheckpointWriter(folder, planned) as writer:
            for name in sorted(planned.keys() & source.tensors.keys()):
                writer.put(name, _stored(source, name))
            for layer in _layers(model, calibration, settings):
                for part in ("qweight", "qzeros", "scales", "g_idx"):
                    writer.put(f"{layer.name}.{part}", getattr(layer.packed, part))
                layers.append(_told(layer))
        for name, path in companions(source.folder).items():
            shutil.copyfile(path, folder / name)
        _write_config(folder, source, settings)
        report = Report(
            stage="quantize",
            inputs={"source": checkpoint_digest(source.folder)}
            | {f"calibration:{path.name}": sha256_file(path) for path in settings.calibration},
            settings=settings.model_dump(mode="json", exclude={"calibration", "device"}),
            facts={
                "method": settings.method,
                "device": str(device),
                "calibration": _told_calibration(settings, calibration),
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
        for layer in layers:
            yield Layer(
                f"{prefix}.{layer.name}",
                layer.packed,
                layer.relative_error,
                layer.damp_percent,
                layer.rescue,
            )


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
        seed=settings.seed,
    )


def _plan(model: StreamedModel, settings: Quantize) -> dict[str, Slot]:
    """Every tensor of the output: packed layers, and the rest in 16 bits."""
    planned: dict[str, Slot] = {}
    packed = set()
    shapes = {
        name: model.checkpoint.info(f"{name}.weight").shape
        for number in range(model.blocks)
        for name in (f"{llama.BLOCK.format(number)}.{linear.name}" for linear in llama.LINEARS)
    }
    common = gcd(*(cols for _, cols in shapes.values()))
    for name, (rows, cols) in shapes.items():
        _check_widths(name, rows, cols, common, settings)
        groups = 1 if settings.group_size == -1 else cols // settings.group_size
        planned |= slots(name, rows, cols, groups=groups, bits=settings.bits)
        packed.add(f"{name}.weight")
    for name, info in model.checkpoint.tensors.items():
        if name not in packed and llama.ROTARY_BUFFER not in name:
            planned[name] = Slot(STORED, info.shape)
    return dict(sorted(planned.items()))


def _check_widths(name: str, rows: int, cols: int, common: int, settings: Quantize) -> None:
    if settings.group_size != -1 and cols % settings.group_size:
        fitting = [size for size in (128, 64, 32, 16) if common % size == 0]
        raise RecipeProblem(
            f"group size {settings.group_size} does not divide the {cols} columns of {name}",
            next_step=f"use --group-size {' or '.join(map(str, [*fitting, -1]))}",
        )
    if rows % 32 or cols % 32:
        raise RecipeProblem(
            f"{name} is {rows} x {cols}; packed words need multiples of 32",
            next_step="pad the model's widths with zeros first",
        )


def _stored(source: Checkpoint, name: str) -> torch.Tensor:
    tensor = source.read(name).to(STORED)
    if not bool(tensor.isfinite().all()):
        raise NumericsProblem(
            f"{name!r} of {source.folder} has values that are not finite in {STORED}",
            next_step="recover the checkpoint again, or check it for overflow",
        )
    return tensor


def _write_config(folder: Path, source: Checkpoint, settings: Quantize) -> None:
    quantization = {
        "quant_method": "gptq",
        "bits": settings.bits,
        "group_size": settings.group_size,
        "desc_act": False,
        "sym": settings.sym,
        "lm_head": False,
        "checkpoint_format": "gptq",
        "pack_dtype": "int32",
        "damp_percent": settings.damp_percent,
        "static_groups": True,
        "true_sequential": True,
        "meta": {"quantizer": [f"camelpress:{__version__}"]},
    }
    config = portable(source.config, STORED) | {"quantization_config": quantization}
    write_json(folder / "config.json", config)
    write_json(folder / "quantize_config.json", quantization)


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


def _told_calibration(settings: Quantize, calibration: Calibration | None) -> dict[str, Any] | None:
    if calibration is None:
        return None
    return {
        "files": [
            {"name": path.name, "sha256": sha256_file(path)} for path in settings.calibration
        ],
        "format": "Tulu prompts, one conversation a sequence; plain text in full windows",
        "samples": len(calibration.sequences),
        "tokens": calibration.tokens,
        "truncated": calibration.truncated,
        "sequence_length": settings.sequence_length,
    }
