"""Imports the result of a backend: checks it against the settings and writes it in GPTQ v1.

Codes, zero points and scales are the backend's. All other tensors come from the source, so they do
not depend on the backend's dtype. Zero points are at least 1, and the config names the quantizer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32, Int32, UInt8
from torch import Tensor

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.checkpoint_writer import CheckpointWriter, TensorSpec
from camelpress.core.errors import ToolProblem
from camelpress.core.packing.gptq_format import (
    GPTQ_TENSORS,
    ZERO_OFFSET,
    GptqTensors,
    dequantize_gptq,
    pack_gptq,
)
from camelpress.core.packing.linear_layers import read_quantized_weight
from camelpress.core.packing.quantization_schemes import GPTQ_V1, QuantizationScheme
from camelpress.core.packing.quantized_weight import QuantizedWeight
from camelpress.core.packing.row_loss import weight_loss
from camelpress.quantize.backends.backend import BackendEnv
from camelpress.quantize.output_layout import OUTPUT_DTYPE, layer_settings, read_fp16
from camelpress.quantize.settings import NATIVE, QuantizeSettings
from camelpress.quantize.solver.loss_limits import exceeds_loss_limit

MIN_COSINE = 0.5  # cosine of a weight and its rounded weight; near 0 for a misread format
REPORTED_KEYS = ("damp_percent", "static_groups", "true_sequential", "act_group_aware")


def import_result(
    folder: Path,
    source: Checkpoint,
    blocks: int,
    env: BackendEnv,
    settings: QuantizeSettings,
    specs: dict[str, TensorSpec],
    out: Path,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Writes the tensors of the output.

    Args:
        folder: folder of the backend's result.
        source: the 16-bit model.
        blocks: number of decoder blocks.
        env: environment of the backend.
        settings: settings of the stage.
        specs: dtype and shape of each output tensor.
        out: output folder.
    Returns:
        facts of every layer, and settings of the backend from its config.
    Raises:
        ToolProblem: the result does not match the settings or the source.
    """
    result = Checkpoint.open(folder)
    config = dict(result.quantization or {})
    _require_requested_grid(config, env, settings)
    layout = config.get("checkpoint_format", GPTQ_V1)
    desc_act = bool(config.get("desc_act"))
    scheme = QuantizationScheme(layout, settings.bits, settings.group_size, None, desc_act)
    layers = []
    with CheckpointWriter(out, specs) as writer:
        for name in sorted(specs.keys() & source.tensors.keys()):
            writer.write_tensor(name, read_fp16(source, name))
        for name in layer_settings(blocks, settings):
            quantized = read_quantized_weight(result, name, scheme)
            packed, facts = _to_gptq_v1(name, quantized, env, settings)
            weight = source.read(f"{name}.weight").to(torch.float32)
            error = _relative_error(name, weight, packed, env, settings)
            for part in GPTQ_TENSORS:
                writer.write_tensor(f"{name}.{part}", getattr(packed, part))
            layers.append({"name": name, "relative_weight_error": error, **facts})
    entries = config.get("meta", {}) | config
    return layers, {key: entries[key] for key in REPORTED_KEYS if key in entries}


def _require_requested_grid(
    config: dict[str, Any], env: BackendEnv, settings: QuantizeSettings
) -> None:
    expected = {"quant_method": "gptq"}
    expected |= settings.model_dump(include={"bits", "group_size", "sym"})
    differences = {
        key: config.get(key) for key, value in expected.items() if config.get(key) != value
    }
    if differences or config.get("checkpoint_format", GPTQ_V1) not in ZERO_OFFSET:
        raise ToolProblem(
            f"{', '.join(env.quantizers)} wrote a checkpoint with {differences or config}, "
            f"not {expected}",
            next_step="use another version of it",
        )


def _to_gptq_v1(
    name: str, quantized: QuantizedWeight, env: BackendEnv, settings: QuantizeSettings
) -> tuple[GptqTensors, dict[str, Any]]:
    """Packs a layer in v1 with contiguous groups and zero points of at least 1."""
    bits = settings.bits
    codes, zeros = quantized.codes.clone(), quantized.zeros.clone()
    cols, groups = codes.shape[1], zeros.shape[1]
    column_groups = (torch.arange(cols) // (cols // groups)).to(torch.int32)
    if not torch.equal(quantized.group_index, column_groups):
        raise _unusable_layer(name, env, "has groups of columns that are not neighbours (desc_act)")
    if settings.sym and not bool((zeros == 2 ** (bits - 1)).all()):
        raise _unusable_layer(name, env, "is symmetric, but has zero points outside the middle")
    scales = quantized.scales.to(OUTPUT_DTYPE)
    if not bool(scales.isfinite().all()):
        raise _unusable_layer(name, env, f"has scales that are not finite in {OUTPUT_DTYPE}")
    raised_count, clipped_count = _raise_zeros(codes, zeros, column_groups, top=2**bits - 1)
    facts = {"raised_zeros": raised_count, "clipped_codes": clipped_count} if raised_count else {}
    return pack_gptq(codes, scales, zeros, column_groups, bits=bits), facts


def _raise_zeros(
    codes: UInt8[Tensor, "rows cols"],
    zeros: UInt8[Tensor, "rows groups"],
    column_groups: Int32[Tensor, " cols"],
    *,
    top: int,
) -> tuple[int, int]:
    """Raises zero points of 0 to 1 in place, and their codes by one: the weights stay equal.

    The largest code cannot be raised, so its weight loses one step. Loaders disagree on a zero
    point of 0 in v1 and on its neighbours.

    Returns:
        number of raised zero points, and number of codes at the limit.
    """
    is_zero = zeros == 0
    has_zero = is_zero[:, column_groups.long()]
    is_clipped = has_zero & (codes == top)
    codes += (has_zero & ~is_clipped).to(torch.uint8)
    zeros += is_zero.to(torch.uint8)
    return int(is_zero.sum()), int(is_clipped.sum())


def _relative_error(
    name: str,
    weight: Float32[Tensor, "rows cols"],
    packed: GptqTensors,
    env: BackendEnv,
    settings: QuantizeSettings,
) -> float:
    """Returns the norm of the rounding error over the norm of the source's weight.

    Raises:
        ToolProblem: the rounded weight has another direction, as with codes in the wrong order,
            or loses too much of the weight.
    """
    exact = weight.double()  # fp32 underflows for squares of the smallest weights
    rounded = dequantize_gptq(packed, bits=settings.bits, zero_offset=ZERO_OFFSET[GPTQ_V1]).double()
    error, norm = float((rounded - exact).norm()), float(exact.norm())
    if not error:
        return 0.0
    if float((rounded * exact).sum()) < MIN_COSINE * norm * float(rounded.norm()):
        raise _unusable_layer(name, env, "does not resemble the layer of the source")
    loss = weight_loss(exact, rounded)
    if exceeds_loss_limit(loss, settings.bits):
        raise _unusable_layer(name, env, f"loses {loss:.0%} of the layer of the source")
    return error / norm


def _unusable_layer(name: str, env: BackendEnv, fault: str) -> ToolProblem:
    return ToolProblem(
        f"{name} as {', '.join(env.quantizers)} wrote it {fault}",
        next_step=f"use another version of it, or --engine {NATIVE}",
    )
