"""What another engine wrote, held against what was asked for, and laid out as this stage does it.

The codes, zero points and scales are the engine's. Everything that is not quantized comes from the
source, so that nothing hangs on the type that an engine loads a model in; the layout is v1, the
zero points are 1 at least, and the config says who quantized.
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

MIN_COSINE = 0.5  # cosine of a weight and what it was rounded to; of another layout it is near 0
REPORTED_KEYS = ("damp_percent", "static_groups", "true_sequential", "act_group_aware")


def import_result(
    folder: Path,
    source: Checkpoint,
    blocks: int,
    ready: BackendEnv,
    settings: QuantizeSettings,
    planned: dict[str, TensorSpec],
    out: Path,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Write the output's tensors: the facts of every layer, and what the engine's config says.

    Raises:
        EngineProblem: it is not what was asked for.
    """
    made = Checkpoint.open(folder)
    config = dict(made.quantization or {})
    _require_requested_grid(config, ready, settings)
    layout = config.get("checkpoint_format", GPTQ_V1)
    desc_act = bool(config.get("desc_act"))
    scheme = QuantizationScheme(
        layout, settings.bits, settings.group_size, None, desc_act
    )  # see _as_stored
    told = []
    with CheckpointWriter(out, planned) as writer:
        for name in sorted(planned.keys() & source.tensors.keys()):
            writer.write_tensor(name, read_fp16(source, name))
        for name in layer_settings(blocks, settings):
            given = read_quantized_weight(made, name, scheme)
            packed, facts = _to_gptq_v1(name, given, ready, settings)
            weight = source.read(f"{name}.weight").to(torch.float32)
            error = _relative_error(name, weight, packed, ready, settings)
            for part in GPTQ_TENSORS:
                writer.write_tensor(f"{name}.{part}", getattr(packed, part))
            told.append({"name": name, "relative_weight_error": error, **facts})
    said = config.get("meta", {}) | config
    return told, {key: said[key] for key in REPORTED_KEYS if key in said}


def _require_requested_grid(
    config: dict[str, Any], ready: BackendEnv, settings: QuantizeSettings
) -> None:
    asked = {"quant_method": "gptq"} | settings.model_dump(include={"bits", "group_size", "sym"})
    wrong = {key: config.get(key) for key, value in asked.items() if config.get(key) != value}
    if wrong or config.get("checkpoint_format", GPTQ_V1) not in ZERO_OFFSET:
        raise ToolProblem(
            f"{', '.join(ready.quantizers)} wrote a checkpoint with {wrong or config}, not {asked}",
            next_step="use another version of it",
        )


def _to_gptq_v1(
    name: str, given: QuantizedWeight, ready: BackendEnv, settings: QuantizeSettings
) -> tuple[GptqTensors, dict[str, Any]]:
    """A layer in v1 with trivial groups and zero points of 1 at least."""
    bits = settings.bits
    codes, zeros = given.codes.clone(), given.zeros.clone()
    cols, groups = codes.shape[1], zeros.shape[1]
    group_of = (torch.arange(cols) // (cols // groups)).to(torch.int32)
    if not torch.equal(given.group_index, group_of):
        raise _unusable_layer(name, ready, "has groups that are not neighbours (desc_act)")
    if settings.sym and not bool((zeros == 2 ** (bits - 1)).all()):
        raise _unusable_layer(name, ready, "is symmetric, but has zero points beside the middle")
    scales = given.scales.to(OUTPUT_DTYPE)
    if not bool(scales.isfinite().all()):
        raise _unusable_layer(name, ready, f"has scales that are not finite in {OUTPUT_DTYPE}")
    raised, clipped = _raise_zeros(codes, zeros, group_of, top=2**bits - 1)
    facts = {"raised_zeros": raised, "clipped_codes": clipped} if raised else {}
    return pack_gptq(codes, scales, zeros, group_of, bits=bits), facts


def _raise_zeros(
    codes: UInt8[Tensor, "rows cols"],
    zeros: UInt8[Tensor, "rows groups"],
    group_of: Int32[Tensor, " cols"],
    *,
    top: int,
) -> tuple[int, int]:
    """Make zero points of 0 those of 1, in place, with codes one more: the same weights.

    Only a code that was the largest stays, and its weight is a step less. Loaders disagree on a
    zero point of 0 in v1, and on those beside it.

    Returns:
        how many zero points were raised, and how many codes could not be.
    """
    none = zeros == 0
    here = none[:, group_of.long()]
    clipped = here & (codes == top)
    codes += (here & ~clipped).to(torch.uint8)
    zeros += none.to(torch.uint8)
    return int(none.sum()), int(clipped.sum())


def _relative_error(
    name: str,
    weight: Float32[Tensor, "rows cols"],
    packed: GptqTensors,
    ready: BackendEnv,
    settings: QuantizeSettings,
) -> float:
    """How far the rounded weight is from the source's, over the length of the latter.

    Raises:
        EngineProblem: it points elsewhere, as codes do that were read in the wrong order, or too
            little of it is left.
    """
    exact = weight.double()  # squares of the smallest weights are no fp32 numbers
    rounded = dequantize_gptq(packed, bits=settings.bits, zero_offset=ZERO_OFFSET[GPTQ_V1]).double()
    error, length = float((rounded - exact).norm()), float(exact.norm())
    if not error:
        return 0.0
    if float((rounded * exact).sum()) < MIN_COSINE * length * float(rounded.norm()):
        raise _unusable_layer(name, ready, "does not resemble the layer of the source")
    loss = weight_loss(exact, rounded)
    if exceeds_loss_limit(loss, settings.bits):
        raise _unusable_layer(name, ready, f"loses {loss:.0%} of the layer of the source")
    return error / length


def _unusable_layer(name: str, ready: BackendEnv, what: str) -> ToolProblem:
    return ToolProblem(
        f"{name} as {', '.join(ready.quantizers)} wrote it {what}",
        next_step=f"use another version of it, or --engine {NATIVE}",
    )
