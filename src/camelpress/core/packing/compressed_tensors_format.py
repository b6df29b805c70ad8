"""Format of llm-compressor on disk: compressed-tensors, `pack-quantized`.

    weight_packed     Int32[rows, cols*bits/32]    codes of neighbouring columns, low bits first
    weight_scale      Float[rows, groups]          in the dtype of the original model
    weight_zero_point Int32[rows*bits/32, groups]  zero points, packed the same way along the rows
    weight_shape      Int64[2]                     rows and cols
    weight_g_idx      Int32[cols]                  group of each column with activation order; no
                                                   longer read by compressed-tensors itself

A symmetric layer has no zero points; its middle code, 2**(bits-1), means zero. Older versions
store signed zero points as Int8[rows, groups].

Source: vllm-project/compressed-tensors 0.19.0 (compressors/pack_quantized).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Int32, Integer, UInt8
from torch import Tensor
from torch.nn.functional import pad

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.checkpoint_writer import TensorSpec
from camelpress.core.errors import CheckpointProblem, ShapeMismatch
from camelpress.core.packing.bitpacking import WORD_BITS, pack_words, unpack_words
from camelpress.core.packing.packed_checks import (
    REPLACEMENT_ADVICE,
    read_group_index,
    require_dtypes,
)
from camelpress.core.packing.quantization_schemes import QuantizationScheme
from camelpress.core.packing.quantized_weight import (
    PackedShape,
    QuantizationParams,
    QuantizedWeight,
    contiguous_groups,
)

COMPRESSED_TENSOR_NAMES = (
    "weight_shape",
    "weight_packed",
    "weight_scale",
    "weight_zero_point",
    "weight_g_idx",
)
# fmt: off
COMPRESSED_DTYPES: Mapping[str, tuple[torch.dtype, ...]] = {
    "weight_packed":     (torch.int32,),
    "weight_scale":      (torch.float16, torch.bfloat16, torch.float32),
    "weight_shape":      (torch.int64, torch.int32),
    "weight_zero_point": (torch.int32, torch.int8),
    "weight_g_idx":      (torch.int32, torch.int64),
}
# fmt: on


def compressed_specs(
    linear: str,
    rows: int,
    cols: int,
    *,
    groups: int,
    bits: int,
    scales: torch.dtype,
    sym: bool,
) -> dict[str, TensorSpec]:
    """Returns names, dtypes and shapes of a packed layer on disk."""
    zeros = (
        {} if sym else {"zero_point": TensorSpec(torch.int32, (_word_count(rows, bits), groups))}
    )
    parts = {
        "packed": TensorSpec(torch.int32, (rows, _word_count(cols, bits))),
        "scale": TensorSpec(scales, (rows, groups)),
        "shape": TensorSpec(torch.int64, (2,)),
    }
    return {f"{linear}.weight_{part}": spec for part, spec in (parts | zeros).items()}


def pack_compressed(codes: QuantizedWeight, *, sym: bool) -> dict[str, Tensor]:
    """Packs a layer into its tensors by name; a symmetric layer has no zero points.

    Raises:
        ShapeMismatch: Rows or columns do not fill whole words.
    """
    parts = {
        "weight_packed": pack_words(codes.codes.T, codes.bits).T.contiguous(),
        "weight_scale": codes.scales.contiguous(),
        "weight_shape": torch.tensor(codes.codes.shape),
    }
    return parts if sym else parts | {"weight_zero_point": pack_words(codes.zeros, codes.bits)}


def unpack_compressed(
    parts: Mapping[str, Tensor], group_index: Integer[Tensor, " cols"], *, bits: int
) -> QuantizedWeight:
    """Unpacks the tensors of a layer; the inverse of `pack_compressed`."""
    rows, cols = (int(size) for size in parts["weight_shape"])
    scales = parts["weight_scale"]
    zeros = _zeros(parts.get("weight_zero_point"), rows, scales.shape[1], bits)
    return QuantizedWeight(
        _unpack_codes(parts["weight_packed"].T, cols, bits).T, scales, zeros, group_index, bits
    )


def compressed_shape(checkpoint: Checkpoint, linear: str) -> PackedShape:
    """Returns the size of a checked layer."""
    rows, cols = checkpoint.read(f"{linear}.weight_shape").tolist()
    scales = checkpoint.tensor_info(f"{linear}.weight_scale")
    return PackedShape(rows, cols, scales.shape[1], scales.dtype)


def check_compressed(
    checkpoint: Checkpoint, linear: str, scheme: QuantizationScheme
) -> tuple[UInt8[Tensor, "rows groups"], Integer[Tensor, " cols"]]:
    """Checks the tensors of a layer and returns its zero points and the group of each column.

    Raises:
        UnknownTensor: A tensor is missing.
        CheckpointProblem: The tensors contradict one another or the config.
    """
    group_index = _check_group_index(checkpoint, linear, scheme)
    stored = None if scheme.sym else checkpoint.read(f"{linear}.weight_zero_point")
    rows, _, groups, _ = compressed_shape(checkpoint, linear)
    return _zeros(stored, rows, groups, scheme.bits), group_index


def read_compressed_params(
    checkpoint: Checkpoint, linear: str, scheme: QuantizationScheme
) -> QuantizationParams:
    """Reads a packed layer without its codes; raises like `check_compressed`."""
    zeros, group_index = check_compressed(checkpoint, linear, scheme)
    return QuantizationParams(checkpoint.read(f"{linear}.weight_scale"), zeros, group_index)


def read_compressed(
    checkpoint: Checkpoint, linear: str, scheme: QuantizationScheme
) -> QuantizedWeight:
    """Reads a packed layer; raises like `check_compressed`."""
    params = read_compressed_params(checkpoint, linear, scheme)
    words = checkpoint.read(f"{linear}.weight_packed").T
    return QuantizedWeight(
        _unpack_codes(words, len(params.group_index), scheme.bits).T, *params, scheme.bits
    )


def _check_group_index(
    checkpoint: Checkpoint, linear: str, scheme: QuantizationScheme
) -> Integer[Tensor, " cols"]:
    """Checks dtypes and shapes of the tensors and returns the group of each column."""
    present = {part for part in COMPRESSED_TENSOR_NAMES if f"{linear}.{part}" in checkpoint.tensors}
    required = {
        *COMPRESSED_TENSOR_NAMES[:3],
        *(() if scheme.sym else COMPRESSED_TENSOR_NAMES[3:4]),
        *(COMPRESSED_TENSOR_NAMES[4:] * scheme.desc_act),
    }
    infos = {
        part: checkpoint.tensor_info(f"{linear}.{part}")
        for part in COMPRESSED_TENSOR_NAMES
        if part in required | present
    }
    require_dtypes(checkpoint, linear, infos, COMPRESSED_DTYPES)
    extra = sorted(present - required)
    if extra:
        is_zero_point = extra[0] == COMPRESSED_TENSOR_NAMES[3]
        raise CheckpointProblem(
            f"{checkpoint.folder / infos[extra[0]].shard} holds '{linear}.{extra[0]}', its config "
            f"says {'symmetric' if is_zero_point else 'no activation order'}",
            next_step="use the config that belongs to these weights",
        )
    sizes = checkpoint.read(f"{linear}.weight_shape").flatten().tolist()
    rows, cols = sizes if len(sizes) == 2 else (0, 0)
    scale_shape = infos["weight_scale"].shape
    groups = scale_shape[1] if len(scale_shape) == 2 else 0
    expected = compressed_specs(
        linear, rows, cols, groups=groups, bits=scheme.bits, scales=torch.float16, sym=False
    )
    if infos.get("weight_zero_point", infos["weight_scale"]).dtype is torch.int8:
        expected[f"{linear}.weight_zero_point"] = TensorSpec(torch.int8, (rows, groups))
    for part, info in infos.items():
        shape = expected.get(f"{linear}.{part}", TensorSpec(torch.int32, (cols,))).shape
        if info.shape != shape:
            raise ShapeMismatch(
                f"{checkpoint.folder} holds '{linear}.{part}' as {list(info.shape)}, its "
                f"weight_shape and weight_scale ask for {list(shape)}",
                next_step=REPLACEMENT_ADVICE,
            )
    group_index = contiguous_groups(cols, groups, scheme.group_size)
    if group_index is None:
        raise ShapeMismatch(
            f"{checkpoint.folder} holds '{linear}.weight_scale' for {groups} groups of {cols} "
            f"columns, its config says group_size {scheme.group_size}",
            next_step="use the config that belongs to these weights",
        )
    if not scheme.desc_act:
        return group_index
    return read_group_index(checkpoint, f"{linear}.weight_g_idx", groups)


def _zeros(
    stored: Tensor | None, rows: int, groups: int, bits: int
) -> UInt8[Tensor, "rows groups"]:
    middle = 2 ** (bits - 1)
    if stored is None:
        return torch.full((rows, groups), middle, dtype=torch.uint8)
    if stored.dtype is torch.int8:
        return (stored.to(torch.int16) + middle).to(torch.uint8)
    return _unpack_codes(stored, rows, bits)


def _word_count(values: int, bits: int) -> int:
    """Returns the number of words, the last one perhaps partial, for `values` codes."""
    return -(-values * bits // WORD_BITS)


def _unpack_codes(
    words: Int32[Tensor, "words rows"], count: int, bits: int
) -> UInt8[Tensor, "count rows"]:
    """Unpacks `count` codes of a stream; the last word may be partial."""
    padding = -len(words) % bits if bits == 3 else 0  # words
    return unpack_words(pad(words.contiguous(), (0, 0, 0, padding)), bits)[:count]
