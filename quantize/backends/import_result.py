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
from camelpress.core.checkpoint.checkpoint_writer import CheckpointWriter, Slot
from camelpress.core.errors import EngineProblem
from camelpress.core.packing.gptq_format import PARTS, ZERO_OFFSET, Packed, dequantize, pack
from camelpress.core.packing.linear_layers import read_codes
from camelpress.core.packing.quantization_schemes import V1, Scheme
from camelpress.core.packing.quantized_weight import Codes
from camelpress.core.packing.row_loss import weight_loss
from camelpress.quantize.backends.backend import Ready
from camelpress.quantize.output_layout import STORED, schemes, stored
from camelpress.quantize.settings import NATIVE, Quantize
from camelpress.quantize.solver.loss_limits import is_lost

LIKE = 0.5  # cosine of a weight and what it was rounded to; of another layout it is near 0
QUOTED = ("damp_percent", "static_groups", "true_sequential", "act_group_aware")


def adopt(
    folder: Path,
    source: Checkpoint,
    blocks: int,
    ready: Ready,
    settings: Quantize,
    planned: dict[str, Slot],
    out: Path,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Write the output's tensors: the facts of every layer, and what the engine's config says.

    Raises:
        EngineProblem: it is not what was asked for.
    """
    made = Checkpoint.open(folder)
    config = dict(made.quantization or {})
    _require_asked(config, ready, settings)
    layout = config.get("checkpoint_format", V1)
    desc_act = bool(config.get("desc_act"))
    scheme = Scheme(layout, settings.bits, settings.group_size, None, desc_act)  # see _as_stored
    told = []
    with CheckpointWriter(out, planned) as writer:
        for name in sorted(planned.keys() & source.tensors.keys()):
            writer.put(name, stored(source, name))
        for name in schemes(blocks, settings):
            given = read_codes(made, name, scheme)
            packed, facts = _as_stored(name, given, ready, settings)
            weight = source.read(f"{name}.weight").to(torch.float32)
            error = _error(name, weight, packed, ready, settings)
            for part in PARTS:
                writer.put(f"{name}.{part}", getattr(packed, part))
            told.append({"name": name, "relative_weight_error": error, **facts})
    said = config.get("meta", {}) | config
    return told, {key: said[key] for key in QUOTED if key in said}


def _require_asked(config: dict[str, Any], ready: Ready, settings: Quantize) -> None:
    asked = {"quant_method": "gptq"} | settings.model_dump(include={"bits", "group_size", "sym"})
    wrong = {key: config.get(key) for key, value in asked.items() if config.get(key) != value}
    if wrong or config.get("checkpoint_format", V1) not in ZERO_OFFSET:
        raise EngineProblem(
            f"{', '.join(ready.makers)} wrote a checkpoint with {wrong or config}, not {asked}",
            next_step="use another version of it",
        )


def _as_stored(
    name: str, given: Codes, ready: Ready, settings: Quantize
) -> tuple[Packed, dict[str, Any]]:
    """A layer in v1 with trivial groups and zero points of 1 at least."""
    bits = settings.bits
    codes, zeros = given.codes.clone(), given.zeros.clone()
    cols, groups = codes.shape[1], zeros.shape[1]
    group_of = (torch.arange(cols) // (cols // groups)).to(torch.int32)
    if not torch.equal(given.group_of, group_of):
        raise _unusable(name, ready, "has groups that are not neighbours (desc_act)")
    if settings.sym and not bool((zeros == 2 ** (bits - 1)).all()):
        raise _unusable(name, ready, "is symmetric, but has zero points beside the middle")
    scales = given.scales.to(STORED)
    if not bool(scales.isfinite().all()):
        raise _unusable(name, ready, f"has scales that are not finite in {STORED}")
    raised, clipped = _raise_zeros(codes, zeros, group_of, top=2**bits - 1)
    facts = {"raised_zeros": raised, "clipped_codes": clipped} if raised else {}
    return pack(codes, scales, zeros, group_of, bits=bits), facts


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


def _error(
    name: str,
    weight: Float32[Tensor, "rows cols"],
    packed: Packed,
    ready: Ready,
    settings: Quantize,
) -> float:
    """How far the rounded weight is from the source's, over the length of the latter.

    Raises:
        EngineProblem: it points elsewhere, as codes do that were read in the wrong order, or too
            little of it is left.
    """
    exact = weight.double()  # squares of the smallest weights are no fp32 numbers
    rounded = dequantize(packed, bits=settings.bits, zero_offset=ZERO_OFFSET[V1]).double()
    error, length = float((rounded - exact).norm()), float(exact.norm())
    if not error:
        return 0.0
    if float((rounded * exact).sum()) < LIKE * length * float(rounded.norm()):
        raise _unusable(name, ready, "does not resemble the layer of the source")
    loss = weight_loss(exact, rounded)
    if is_lost(loss, settings.bits):
        raise _unusable(name, ready, f"loses {loss:.0%} of the layer of the source")
    return error / length


def _unusable(name: str, ready: Ready, what: str) -> EngineProblem:
    return EngineProblem(
        f"{name} as {', '.join(ready.makers)} wrote it {what}",
        next_step=f"use another version of it, or --engine {NATIVE}",
    )
