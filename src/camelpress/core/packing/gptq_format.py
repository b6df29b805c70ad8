"""The GPTQ layout on disk: integer codes in 32-bit words, a scale and a zero point per group.

    qweight Int32[cols*bits/32, rows]    codes of neighbouring columns in one word, low bits first
    qzeros  Int32[groups, rows*bits/32]  zero points, packed the same way along the rows
    scales  Float16[groups, rows]        AutoGPTQ writes Float32 where it computed in that
    g_idx   Int32[cols]                  the group of each column; auto-round leaves it out

Rows are outputs and columns are inputs; on disk columns come first. The published format ("gptq",
v1) stores the zero point minus one; "gptq_v2" stores it as it is. quantize writes this, validate
and publish read it: one copy, here.

Source: AutoGPTQ/AutoGPTQ 9f7d370 (qlinear packing); ModelCloud/GPTQModel f4c327a (v1 and v2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int32, Integer, UInt8
from torch import Tensor

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.checkpoint_writer import TensorSpec
from camelpress.core.errors import CheckpointProblem, ShapeMismatch
from camelpress.core.packing.bitpacking import WORD_BITS, pack_words, unpack_words
from camelpress.core.packing.packed_checks import (
    REPLACEMENT_ADVICE,
    read_group_index,
    require_dtypes,
)
from camelpress.core.packing.quantization_schemes import GPTQ_V1, GPTQ_V2, QuantizationScheme
from camelpress.core.packing.quantized_weight import (
    PackedShape,
    QuantizationParams,
    QuantizedWeight,
    contiguous_groups,
)

ZERO_OFFSET = {GPTQ_V1: 1, GPTQ_V2: 0}  # what is added to a stored zero point
GPTQ_TENSORS = ("qweight", "qzeros", "scales", "g_idx")
# fmt: off
GPTQ_DTYPES: Mapping[str, tuple[torch.dtype, ...]] = {
    "qweight": (torch.int32,),
    "qzeros":  (torch.int32,),
    "scales":  (torch.float16, torch.float32),
    "g_idx":   (torch.int32, torch.int64),
}
# fmt: on


@dataclass(frozen=True)
class GptqTensors:
    """One linear layer as its four tensors."""

    qweight: Int32[Tensor, "words rows"]
    qzeros: Int32[Tensor, "groups zero_words"]
    scales: Float[Tensor, "groups rows"]
    g_idx: Integer[Tensor, " cols"]


def pack_gptq(
    codes: UInt8[Tensor, "rows cols"],
    scales: Float[Tensor, "rows groups"],
    zeros: UInt8[Tensor, "rows groups"],
    group_of: Integer[Tensor, " cols"],
    *,
    bits: int,
    zero_offset: int = ZERO_OFFSET[GPTQ_V1],
) -> GptqTensors:
    """Lay a solved layer out for disk.

    Args:
        codes: 0 to 2**bits - 1.
        scales: one step per row and group; unit: weight.
        zeros: the code that means zero, 1 to 2**bits - 1 (a zero point of 0 wraps round in v1).
        group_of: the group of each column.
        bits: 2, 3, 4 or 8.
        zero_offset: what the format adds to a stored zero point, 1 in v1 and 0 in v2.
    Raises:
        ShapeMismatch: rows or columns do not fill whole words.
    """
    stored = (zeros - zero_offset).to(torch.uint8) & (2**bits - 1)
    return GptqTensors(
        qweight=pack_words(codes.T, bits),
        qzeros=pack_words(stored, bits).T.contiguous(),
        scales=scales.T.contiguous(),
        g_idx=group_of,
    )


def unpack_gptq(packed: GptqTensors, *, bits: int, zero_offset: int) -> QuantizedWeight:
    """The inverse of `pack`."""
    return QuantizedWeight(
        unpack_words(packed.qweight, bits).T,
        packed.scales.T,
        _zeros(packed.qzeros, bits, zero_offset),
        packed.g_idx,
        bits,
    )


def dequantize_gptq(
    packed: GptqTensors, *, bits: int, zero_offset: int
) -> Float32[Tensor, "rows cols"]:
    """The weights that a loader computes with, in fp32.

    Args:
        packed: as on disk.
        bits: 2, 3, 4 or 8.
        zero_offset: what the format adds to a stored zero point, 1 in v1 and 0 in v2.
    """
    return unpack_gptq(packed, bits=bits, zero_offset=zero_offset).dequantize()


def gptq_specs(
    linear: str,
    rows: int,
    cols: int,
    *,
    groups: int,
    bits: int,
    scales: torch.dtype = torch.float16,
) -> dict[str, TensorSpec]:
    """Names, types and shapes of a packed layer on disk, before it is solved."""
    return {
        f"{linear}.qweight": TensorSpec(torch.int32, (cols * bits // WORD_BITS, rows)),
        f"{linear}.qzeros": TensorSpec(torch.int32, (groups, rows * bits // WORD_BITS)),
        f"{linear}.scales": TensorSpec(scales, (groups, rows)),
        f"{linear}.g_idx": TensorSpec(torch.int32, (cols,)),
    }


def gptq_shape(checkpoint: Checkpoint, linear: str, scheme: QuantizationScheme) -> PackedShape:
    """The size of a layer that was checked."""
    scales = checkpoint.tensor_info(f"{linear}.scales")
    groups, rows = scales.shape
    words = checkpoint.tensor_info(f"{linear}.qweight").shape[0]
    return PackedShape(rows, words * WORD_BITS // scheme.bits, groups, scales.dtype)


def check_gptq(
    checkpoint: Checkpoint, linear: str, scheme: QuantizationScheme
) -> tuple[UInt8[Tensor, "rows groups"], Integer[Tensor, " cols"]]:
    """Zero points and the group of each column, once all parts are seen to fit together.

    Raises:
        UnknownTensor: a part is missing.
        CheckpointProblem: parts contradict one another, or the config.
    """
    group_of = _check_group_index(checkpoint, linear, scheme)
    qzeros = checkpoint.read(f"{linear}.qzeros")
    zeros = _zeros(qzeros, scheme.bits, ZERO_OFFSET[scheme.checkpoint_format])
    _require_zeros(checkpoint, linear, scheme, zeros)
    return zeros, group_of


def read_gptq_params(
    checkpoint: Checkpoint, linear: str, scheme: QuantizationScheme
) -> QuantizationParams:
    """A packed layer without its codes; raises as `check`."""
    zeros, group_of = check_gptq(checkpoint, linear, scheme)
    return QuantizationParams(checkpoint.read(f"{linear}.scales").T, zeros, group_of)


def read_gptq(checkpoint: Checkpoint, linear: str, scheme: QuantizationScheme) -> QuantizedWeight:
    """A packed layer; raises as `check`."""
    found = read_gptq_params(checkpoint, linear, scheme)
    qweight = checkpoint.read(f"{linear}.qweight")
    return QuantizedWeight(unpack_words(qweight, scheme.bits).T, *found, scheme.bits)


def _zeros(
    qzeros: Int32[Tensor, "groups zero_words"], bits: int, zero_offset: int
) -> UInt8[Tensor, "rows groups"]:
    return (unpack_words(qzeros.T.contiguous(), bits) + zero_offset) & (2**bits - 1)


def _check_group_index(
    checkpoint: Checkpoint, linear: str, scheme: QuantizationScheme
) -> Integer[Tensor, " cols"]:
    """The group of each column, once the parts are seen to fit together.

    A wrong group would be another scale.
    """
    there = [
        part for part in GPTQ_TENSORS if part != "g_idx" or f"{linear}.g_idx" in checkpoint.tensors
    ]
    infos = {part: checkpoint.tensor_info(f"{linear}.{part}") for part in there}
    store = "quantize again, or store it in that type where no value changes"
    require_dtypes(checkpoint, linear, infos, GPTQ_DTYPES, next_step=store)
    shape = infos["scales"].shape
    groups, rows = shape if len(shape) == 2 else (0, 0)
    cols = infos["qweight"].shape[0] * WORD_BITS // scheme.bits if infos["qweight"].shape else 0
    asked = "scales"
    if "g_idx" in infos:
        asked = "scales and g_idx"
        cols = infos["g_idx"].shape[0] if len(infos["g_idx"].shape) == 1 else 0
    for name, slot in gptq_specs(linear, rows, cols, groups=groups, bits=scheme.bits).items():
        part = name.rpartition(".")[2]
        if part in infos and infos[part].shape != slot.shape:
            raise ShapeMismatch(
                f"{checkpoint.folder} holds {name!r} as {list(infos[part].shape)}, its {asked} "
                f"ask for {list(slot.shape)}",
                next_step=REPLACEMENT_ADVICE,
            )
    even = contiguous_groups(cols, groups, scheme.group_size)
    if even is None and (scheme.group_size is not None or "g_idx" not in infos):
        raise ShapeMismatch(
            f"{checkpoint.folder} holds '{linear}.scales' for {groups} groups of {cols} columns, "
            f"its config says group_size {scheme.group_size}",
            next_step="use the config that belongs to these weights",
        )
    if "g_idx" in infos:
        return read_group_index(checkpoint, f"{linear}.g_idx", groups)
    if even is None or scheme.desc_act:
        raise CheckpointProblem(
            f"{checkpoint.folder} has desc_act, but lacks '{linear}.g_idx', which tells the order",
            next_step=REPLACEMENT_ADVICE,
        )
    return even


def _require_zeros(
    checkpoint: Checkpoint,
    linear: str,
    scheme: QuantizationScheme,
    zeros: UInt8[Tensor, "rows groups"],
) -> None:
    """See that zero points of a symmetric layer are where the label of the format has them."""
    if scheme.sym is False:
        return
    middle, offset = 2 ** (scheme.bits - 1), ZERO_OFFSET[scheme.checkpoint_format]
    other = next(layout for layout in ZERO_OFFSET if layout != scheme.checkpoint_format)
    shard = checkpoint.folder / checkpoint.tensor_info(f"{linear}.qzeros").shard
    if bool((zeros == middle + offset - ZERO_OFFSET[other]).all()):
        raise CheckpointProblem(
            f"{shard} holds {middle - ZERO_OFFSET[other]} in every place of '{linear}.qzeros', as "
            f"{other} does, its config says {scheme.checkpoint_format}",
            next_step=f'say "checkpoint_format": "{other}" in its config.json',
        )
    if scheme.sym and not bool((zeros == middle).all()):
        raise CheckpointProblem(
            f"{shard} holds zero points other than {middle} in '{linear}.qzeros', its config says "
            "that it is symmetric",
            next_step='say "sym": false in its config.json if they are meant; some kernels '
            "would ignore them",
        )
