"""GPTQ format on disk: integer codes in 32-bit words, one scale and one zero point per group.

    qweight Int32[cols*bits/32, rows]    codes of neighbouring columns in one word, low bits first
    qzeros  Int32[groups, rows*bits/32]  zero points, packed the same way along the rows
    scales  Float16[groups, rows]        Float32 from AutoGPTQ after a computation in fp32
    g_idx   Int32[cols]                  group of each column; absent from auto-round

Rows are outputs and columns are inputs; on disk columns come first. The published format ("gptq",
v1) stores the zero point minus one; "gptq_v2" stores it unchanged. All stages share this module.

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

ZERO_OFFSET = {GPTQ_V1: 1, GPTQ_V2: 0}  # offset from a stored zero point to the real one
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
    """The four tensors of one linear layer on disk."""

    qweight: Int32[Tensor, "words rows"]
    qzeros: Int32[Tensor, "groups zero_words"]
    scales: Float[Tensor, "groups rows"]
    g_idx: Integer[Tensor, " cols"]


def pack_gptq(
    codes: UInt8[Tensor, "rows cols"],
    scales: Float[Tensor, "rows groups"],
    zeros: UInt8[Tensor, "rows groups"],
    group_index: Integer[Tensor, " cols"],
    *,
    bits: int,
    zero_offset: int = ZERO_OFFSET[GPTQ_V1],
) -> GptqTensors:
    """Packs a quantized layer for disk.

    Args:
        codes: Codes, 0 to 2**bits - 1, [rows cols].
        scales: One step per row and group, [rows groups]; unit: weight.
        zeros: Code of zero, 1 to 2**bits - 1 (0 wraps round in v1), [rows groups].
        group_index: Group of each column, [cols].
        bits: Bits per code: 2, 3, 4 or 8.
        zero_offset: Offset from a stored zero point to the real one: 1 in v1 and 0 in v2.
    Raises:
        ShapeMismatch: Rows or columns do not fill whole words.
    """
    stored = (zeros - zero_offset).to(torch.uint8) & (2**bits - 1)
    return GptqTensors(
        qweight=pack_words(codes.T, bits),
        qzeros=pack_words(stored, bits).T.contiguous(),
        scales=scales.T.contiguous(),
        g_idx=group_index,
    )


def unpack_gptq(packed: GptqTensors, *, bits: int, zero_offset: int) -> QuantizedWeight:
    """Unpacks a layer from disk; the inverse of `pack_gptq`."""
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
    """Dequantizes a layer to the weights of a loader, in fp32.

    Args:
        packed: Tensors on disk.
        bits: Bits per code: 2, 3, 4 or 8.
        zero_offset: Offset from a stored zero point to the real one: 1 in v1 and 0 in v2.
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
    """Returns names, dtypes and shapes of a packed layer on disk."""
    return {
        f"{linear}.qweight": TensorSpec(torch.int32, (cols * bits // WORD_BITS, rows)),
        f"{linear}.qzeros": TensorSpec(torch.int32, (groups, rows * bits // WORD_BITS)),
        f"{linear}.scales": TensorSpec(scales, (groups, rows)),
        f"{linear}.g_idx": TensorSpec(torch.int32, (cols,)),
    }


def gptq_shape(checkpoint: Checkpoint, linear: str, scheme: QuantizationScheme) -> PackedShape:
    """Returns the size of a checked layer."""
    scales = checkpoint.tensor_info(f"{linear}.scales")
    groups, rows = scales.shape
    words = checkpoint.tensor_info(f"{linear}.qweight").shape[0]
    return PackedShape(rows, words * WORD_BITS // scheme.bits, groups, scales.dtype)


def check_gptq(
    checkpoint: Checkpoint, linear: str, scheme: QuantizationScheme
) -> tuple[UInt8[Tensor, "rows groups"], Integer[Tensor, " cols"]]:
    """Checks the tensors of a layer and returns its zero points and the group of each column.

    Raises:
        UnknownTensor: A tensor is missing.
        CheckpointProblem: The tensors contradict one another or the config.
    """
    group_index = _check_group_index(checkpoint, linear, scheme)
    qzeros = checkpoint.read(f"{linear}.qzeros")
    zeros = _zeros(qzeros, scheme.bits, ZERO_OFFSET[scheme.checkpoint_format])
    _require_zeros(checkpoint, linear, scheme, zeros)
    return zeros, group_index


def read_gptq_params(
    checkpoint: Checkpoint, linear: str, scheme: QuantizationScheme
) -> QuantizationParams:
    """Reads a packed layer without its codes; raises like `check_gptq`."""
    zeros, group_index = check_gptq(checkpoint, linear, scheme)
    return QuantizationParams(checkpoint.read(f"{linear}.scales").T, zeros, group_index)


def read_gptq(checkpoint: Checkpoint, linear: str, scheme: QuantizationScheme) -> QuantizedWeight:
    """Reads a packed layer; raises like `check_gptq`."""
    params = read_gptq_params(checkpoint, linear, scheme)
    qweight = checkpoint.read(f"{linear}.qweight")
    return QuantizedWeight(unpack_words(qweight, scheme.bits).T, *params, scheme.bits)


def _zeros(
    qzeros: Int32[Tensor, "groups zero_words"], bits: int, zero_offset: int
) -> UInt8[Tensor, "rows groups"]:
    return (unpack_words(qzeros.T.contiguous(), bits) + zero_offset) & (2**bits - 1)


def _check_group_index(
    checkpoint: Checkpoint, linear: str, scheme: QuantizationScheme
) -> Integer[Tensor, " cols"]:
    """Checks dtypes and shapes of the tensors and returns the group of each column.

    A column with a wrong group would get a wrong scale.
    """
    present = [
        part for part in GPTQ_TENSORS if part != "g_idx" or f"{linear}.g_idx" in checkpoint.tensors
    ]
    infos = {part: checkpoint.tensor_info(f"{linear}.{part}") for part in present}
    advice = "quantize again, or store it in that type where no value changes"
    require_dtypes(checkpoint, linear, infos, GPTQ_DTYPES, next_step=advice)
    shape = infos["scales"].shape
    groups, rows = shape if len(shape) == 2 else (0, 0)
    cols = infos["qweight"].shape[0] * WORD_BITS // scheme.bits if infos["qweight"].shape else 0
    sources = "scales"
    if "g_idx" in infos:
        sources = "scales and g_idx"
        cols = infos["g_idx"].shape[0] if len(infos["g_idx"].shape) == 1 else 0
    for name, spec in gptq_specs(linear, rows, cols, groups=groups, bits=scheme.bits).items():
        part = name.rpartition(".")[2]
        if part in infos and infos[part].shape != spec.shape:
            raise ShapeMismatch(
                f"{checkpoint.folder} holds {name!r} as {list(infos[part].shape)}, its {sources} "
                f"ask for {list(spec.shape)}",
                next_step=REPLACEMENT_ADVICE,
            )
    group_index = contiguous_groups(cols, groups, scheme.group_size)
    if group_index is None and (scheme.group_size is not None or "g_idx" not in infos):
        raise ShapeMismatch(
            f"{checkpoint.folder} holds '{linear}.scales' for {groups} groups of {cols} columns, "
            f"its config says group_size {scheme.group_size}",
            next_step="use the config that belongs to these weights",
        )
    if "g_idx" in infos:
        return read_group_index(checkpoint, f"{linear}.g_idx", groups)
    if group_index is None or scheme.desc_act:
        raise CheckpointProblem(
            f"{checkpoint.folder} has desc_act, but lacks '{linear}.g_idx', which tells the order",
            next_step=REPLACEMENT_ADVICE,
        )
    return group_index


def _require_zeros(
    checkpoint: Checkpoint,
    linear: str,
    scheme: QuantizationScheme,
    zeros: UInt8[Tensor, "rows groups"],
) -> None:
    """Checks that the zero points of a symmetric layer are the middle code of its format."""
    if scheme.sym is False:
        return
    middle, offset = 2 ** (scheme.bits - 1), ZERO_OFFSET[scheme.checkpoint_format]
    other_format = next(label for label in ZERO_OFFSET if label != scheme.checkpoint_format)
    shard = checkpoint.folder / checkpoint.tensor_info(f"{linear}.qzeros").shard
    if bool((zeros == middle + offset - ZERO_OFFSET[other_format]).all()):
        raise CheckpointProblem(
            f"{shard} holds {middle - ZERO_OFFSET[other_format]} in every place of "
            f"'{linear}.qzeros', as {other_format} does, its config says "
            f"{scheme.checkpoint_format}",
            next_step=f'say "checkpoint_format": "{other_format}" in its config.json',
        )
    if scheme.sym and not bool((zeros == middle).all()):
        raise CheckpointProblem(
            f"{shard} holds zero points other than {middle} in '{linear}.qzeros', its config says "
            "that it is symmetric",
            next_step='say "sym": false in its config.json if they are meant; some kernels '
            "would ignore them",
        )
