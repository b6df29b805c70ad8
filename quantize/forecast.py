"""How much memory a run will need at most, told before it starts.

Nothing here depends on the number of blocks or of samples: in memory are a block twice (the one
under way and the next), one lane of calibration tokens, and what one input's Hessian takes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from camelpress.core import llama, sequences
from camelpress.core.blocks import StreamedModel
from camelpress.core.report import resident_bytes
from camelpress.quantize.kernel import kernel
from camelpress.quantize.lanes import Lane
from camelpress.quantize.layer import ROWS

FP32 = torch.float32.itemsize
SOLVING = 4  # matrices as large as the Hessian, at most, while one is factorized
WORKING = 7  # matrices as large as a block of rows, while one is solved
PASSING = 5  # activations as wide as the widest, for each token of a batch


def forecast(model: StreamedModel, lanes: list[Lane]) -> dict[str, int]:
    """Peak bytes by what they hold; the sum is the forecast.

    Args:
        model: that will be quantized.
        lanes: of its calibration.
    """
    kernel(model.device)  # loads a compiler, which is part of the program
    shapes = model.shapes(0)
    block = sum(torch.Size(shape).numel() for shape in shapes.values())
    stored = model.checkpoint.info(f"{llama.BLOCK.format(0)}.input_layernorm.weight").dtype
    linear = {name: shapes[f"{name}.weight"] for name, _ in llama.LINEARS}
    tokens = max((len(lane.sequences.tokens) for lane in lanes), default=0)
    copies = 1 if stored == model.dtype else 2
    return {
        "program": resident_bytes(),
        "weights": 2 * block * stored.itemsize + copies * block * model.dtype.itemsize,
        "layer": max(_layer(model, linear, stage, tokens) for stage in llama.STAGES),
    }


def _layer(
    model: StreamedModel, linear: Mapping[str, tuple[int, ...]], stage: str, tokens: int
) -> int:
    """What the layers of one input take, whichever is more: collecting or solving."""
    names = llama.linears_fed_by(stage)
    rows, cols = sum(linear[name][0] for name in names), linear[names[0]][1]
    hidden = int(model.config.hidden_size)
    widest = max(width for shape in linear.values() for width in shape)
    moments = FP32 * cols * (cols + hidden)
    states = tokens * (2 * FP32 * hidden + model.dtype.itemsize * cols)
    passing = PASSING * sequences.BATCH_TOKENS * widest * FP32
    collecting = 2 * moments + states + passing
    solving = (
        moments
        + FP32 * (SOLVING - 1) * cols**2
        + FP32 * WORKING * min(rows, ROWS) * cols
        + rows * cols * (1 + FP32)  # codes, and what they stand for
    )
    return FP32 * rows * cols + max(collecting, solving)
