"""What the output folder holds, before a single code is known: tensors, types, config."""

from __future__ import annotations

from math import gcd
from pathlib import Path

import torch

from camelpress import __version__
from camelpress.core import llama
from camelpress.core.checkpoint import Checkpoint
from camelpress.core.config import portable
from camelpress.core.errors import NumericsProblem, RecipeProblem
from camelpress.core.json import write_json
from camelpress.core.packed import slots
from camelpress.core.writer import Slot
from camelpress.quantize.settings import Quantize

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


def plan(source: Checkpoint, blocks: int, settings: Quantize) -> dict[str, Slot]:
    """Every tensor of the output: packed layers, and the rest in 16 bits."""
    planned: dict[str, Slot] = {}
    packed = set()
    shapes = {
        name: source.info(f"{name}.weight").shape
        for number in range(blocks)
        for name in (f"{llama.BLOCK.format(number)}.{linear.name}" for linear in llama.LINEARS)
    }
    common = gcd(*(cols for _, cols in shapes.values()))
    for name, (rows, cols) in shapes.items():
        _check_widths(name, rows, cols, common, settings)
        groups = 1 if settings.group_size == -1 else cols // settings.group_size
        planned |= slots(name, rows, cols, groups=groups, bits=settings.bits)
        packed.add(f"{name}.weight")
    for name, info in source.tensors.items():
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


def stored(source: Checkpoint, name: str) -> torch.Tensor:
    """A tensor that is not quantized, as it is written.

    Raises:
        NumericsProblem: it does not fit fp16.
    """
    tensor = source.read(name).to(STORED)
    if not bool(tensor.isfinite().all()):
        raise NumericsProblem(
            f"{name!r} of {source.folder} has values that are not finite in {STORED}",
            next_step="recover the checkpoint again, or check it for overflow",
        )
    return tensor


def write_config(folder: Path, source: Checkpoint, settings: Quantize) -> None:
    """Both files in which loaders look for how the weights are packed."""
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
