"""Forecast of a run's peak memory, printed before it starts.

The peak is independent of the number of blocks: memory holds two of them (the current and the next
one), the hidden states or one shard of them, and the matrices of one input's Hessian.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from camelpress.core import llama
from camelpress.core.runtime.resource_usage import resident_bytes
from camelpress.inference.model.streamed_model import StreamedModel
from camelpress.inference.streaming.state_home import StateHome
from camelpress.quantize.block_quantizer import INNER_LINEARS
from camelpress.quantize.calibration.reference_states import STATE_DTYPE
from camelpress.quantize.calibration_shards import CalibrationShard
from camelpress.quantize.kernels.device_kernels import pick_kernel
from camelpress.quantize.solver.layer import block_rows

FP32_BYTES = torch.float32.itemsize  # bytes of an fp32 number
PROGRAM_BYTES = 80_000_000  # bytes of code loaded later, and of free blocks kept by malloc
FACTOR_MATRICES = 2  # additional matrices of the Hessian's size during its factorization
CORRECTION_MATRICES = 3  # additional matrices of the cross moment's size during the correction
SOLVER_MATRICES = 7  # matrices of a block of rows while it is solved
ACTIVATION_COPIES = 6  # activations of the largest width for each token of a batch


def state_bytes(model: StreamedModel, shards: list[CalibrationShard]) -> int:
    """Returns the bytes of all hidden states and of the inputs that one block keeps.

    Args:
        model: model to quantize.
        shards: calibration tokens.
    """
    shapes = model.block_shapes(0)
    inner = sum(shapes[f"{name}.weight"][1] for name in INNER_LINEARS) * model.dtype.itemsize
    versions = 2 * STATE_DTYPE.itemsize * int(model.config.hidden_size)
    return sum(
        len(shard.sequences.tokens) * (versions * (1 + shard.has_reference) + inner)
        for shard in shards
    )


def forecast_memory(
    model: StreamedModel, shards: list[CalibrationShard], home: StateHome
) -> dict[str, int]:
    """Forecasts the peak bytes of program, weights, layer and states; their sum is the total.

    Args:
        model: model to quantize.
        shards: calibration tokens.
        home: home of their hidden states.
    """
    pick_kernel(model.device)  # loads a compiler, part of the program's memory
    shapes = model.block_shapes(0)
    block = sum(torch.Size(shape).numel() for shape in shapes.values())
    stored_dtype = model.checkpoint.tensor_info(
        f"{llama.BLOCK_NAME.format(0)}.input_layernorm.weight"
    ).dtype
    linear = {name: shapes[f"{name}.weight"] for name, _ in llama.LINEARS}
    blocks = min(2, model.block_count)  # blocks read at a time
    copies = 1 if stored_dtype == model.dtype else 2  # the 16-bit tensors and their replacements
    return {
        "program": resident_bytes() + PROGRAM_BYTES,
        "weights": blocks * block * stored_dtype.itemsize + copies * block * model.dtype.itemsize,
        "layer": max(_layer_bytes(model, linear, stage, shards) for stage in llama.LINEAR_INPUTS),
        "states": state_bytes(model, shards) if home.in_memory else 0,
    }


def _layer_bytes(
    model: StreamedModel,
    linear: Mapping[str, tuple[int, ...]],
    stage: str,
    shards: list[CalibrationShard],
) -> int:
    """Returns the peak bytes of one input's layers: to collect, correct or solve."""
    names = llama.linears_with_input(stage)
    rows, cols = sum(linear[name][0] for name in names), linear[names[0]][1]
    hidden = int(model.config.hidden_size)
    max_width = max(width for shape in linear.values() for width in shape)
    tokens = max((len(shard.sequences.tokens) for shard in shards), default=0)
    batches = (batch for shard in shards for batch in shard.sequences.batches)
    batch_tokens = max((sum(batch.lengths) for batch in batches), default=0)
    cross = FP32_BYTES * cols * hidden * any(shard.has_reference for shard in shards)
    hessian, weight = FP32_BYTES * cols**2, FP32_BYTES * rows * cols
    collect_bytes = (
        2 * (hessian + cross)
        + tokens * (2 * FP32_BYTES * hidden + model.dtype.itemsize * cols)
        + ACTIVATION_COPIES * batch_tokens * max_width * FP32_BYTES
    )
    correct_bytes = (
        (1 + FACTOR_MATRICES) * hessian + (1 + CORRECTION_MATRICES) * cross + weight if cross else 0
    )
    solve_bytes = (
        (1 + FACTOR_MATRICES) * hessian
        + 2 * weight  # the weight and its dequantized codes
        + rows * cols  # codes
        + FP32_BYTES * SOLVER_MATRICES * min(rows, block_rows(model.device)) * cols
    )
    return max(collect_bytes, correct_bytes, solve_bytes)
