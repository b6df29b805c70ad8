"""How much memory a run will need at most, told before it starts.

Nothing here depends on the number of blocks or of samples: in memory are a block twice (the one
under way and the next), one lane of calibration tokens, and what one input's Hessian takes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from camelpress.core import llama
from camelpress.inference.model.streamed_model import StreamedModel
from camelpress.quantize.calibration_shards import CalibrationShard
from camelpress.quantize.kernels.kernel import pick_kernel
from camelpress.quantize.solver.layer import SOLVE_ROWS
from camelpress.reporting.stage_report import resident_bytes

FP32_BYTES = torch.float32.itemsize
PROGRAM_BYTES = (
    80_000_000  # bytes: code that is compiled or loaded later, and what malloc does not reuse
)
FACTOR_MATRICES = 2  # matrices as large as the Hessian, at most, beside it while it is factorized
CORRECTION_MATRICES = 3  # matrices as large as the cross moments, beside them
SOLVER_MATRICES = 7  # matrices as large as a block of rows, while one is solved
ACTIVATION_COPIES = 6  # activations as wide as the widest, for each token of a batch


def forecast_memory(model: StreamedModel, lanes: list[CalibrationShard]) -> dict[str, int]:
    """Peak bytes by what they hold; the sum is the forecast.

    Args:
        model: that will be quantized.
        lanes: of its calibration.
    """
    pick_kernel(model.device)  # loads a compiler, which is part of the program
    shapes = model.block_shapes(0)
    block = sum(torch.Size(shape).numel() for shape in shapes.values())
    stored = model.checkpoint.tensor_info(
        f"{llama.BLOCK_NAME.format(0)}.input_layernorm.weight"
    ).dtype
    linear = {name: shapes[f"{name}.weight"] for name, _ in llama.LINEARS}
    ahead = min(2, model.block_count)  # blocks that are read
    copies = 1 if stored == model.dtype else 2  # the 16-bit ones, and those that replace them
    return {
        "program": resident_bytes() + PROGRAM_BYTES,
        "weights": ahead * block * stored.itemsize + copies * block * model.dtype.itemsize,
        "layer": max(_layer_bytes(model, linear, stage, lanes) for stage in llama.LINEAR_INPUTS),
    }


def _layer_bytes(
    model: StreamedModel,
    linear: Mapping[str, tuple[int, ...]],
    stage: str,
    lanes: list[CalibrationShard],
) -> int:
    """What the layers of one input take, whatever is most: collecting, aiming or solving."""
    names = llama.linears_with_input(stage)
    rows, cols = sum(linear[name][0] for name in names), linear[names[0]][1]
    hidden = int(model.config.hidden_size)
    widest = max(width for shape in linear.values() for width in shape)
    tokens = max((len(lane.sequences.tokens) for lane in lanes), default=0)
    batches = (each for lane in lanes for each in lane.sequences.batches)
    batch = max((sum(each.lengths) for each in batches), default=0)
    cross = FP32_BYTES * cols * hidden * any(lane.has_reference for lane in lanes)
    hessian, weight = FP32_BYTES * cols**2, FP32_BYTES * rows * cols
    collecting = (
        2 * (hessian + cross)
        + tokens * (2 * FP32_BYTES * hidden + model.dtype.itemsize * cols)
        + ACTIVATION_COPIES * batch * widest * FP32_BYTES
    )
    aiming = (
        (1 + FACTOR_MATRICES) * hessian + (1 + CORRECTION_MATRICES) * cross + weight if cross else 0
    )
    solving = (
        (1 + FACTOR_MATRICES) * hessian
        + 2 * weight  # before, and what its codes stand for
        + rows * cols  # codes
        + FP32_BYTES * SOLVER_MATRICES * min(rows, SOLVE_ROWS) * cols
    )
    return max(collecting, aiming, solving)
