"""The GPTQ layout on disk: integer codes in 32-bit words, a scale and a zero point per group.

    qweight Int32[cols*bits/32, rows]    codes of neighbouring columns in one word, low bits first
    qzeros  Int32[groups, rows*bits/32]  zero points, packed the same way along the rows
    scales  Float16[groups, rows]
    g_idx   Int32[cols]                  the group of each column
    weight[row, col] = scales[g, row] * (code[row, col] - zero[g, row])  with g = g_idx[col]

Rows are outputs and columns are inputs, as in `torch.nn.Linear.weight`; on disk columns come
first. The published format ("gptq", v1) stores the zero point minus one; "gptq_v2" stores it as
it is. quantize writes this, validate and publish read it: one copy, here.

Source: AutoGPTQ/AutoGPTQ 9f7d370 (qlinear packing); ModelCloud/GPTQModel f4c327a (v1 and v2).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import torch
from jaxtyping import Float16, Float32, Int32, UInt8
from torch import Tensor

from camelpress.core.checkpoint import Checkpoint
from camelpress.core.dynamic import settings_of
from camelpress.core.errors import CheckpointProblem, ShapeMismatch
from camelpress.core.writer import Slot

WORD = 32
BITS = (2, 3, 4, 8)
ZERO_OFFSET = {"gptq": 1, "gptq_v2": 0}
PARTS = ("qweight", "qzeros", "scales", "g_idx")
AGAIN = "download or quantize the checkpoint again"


@dataclass(frozen=True)
class Packed:
    """One linear layer as its four tensors."""

    qweight: Int32[Tensor, "words rows"]
    qzeros: Int32[Tensor, "groups zero_words"]
    scales: Float16[Tensor, "groups rows"]
    g_idx: Int32[Tensor, " cols"]


def pack(
    codes: UInt8[Tensor, "rows cols"],
    scales: Float16[Tensor, "rows groups"],
    zeros: UInt8[Tensor, "rows groups"],
    group_of: Int32[Tensor, " cols"],
    *,
    bits: int,
) -> Packed:
    """Lay a solved layer out for disk, in the v1 format.

    Args:
        codes: 0 to 2**bits - 1.
        scales: one step per row and group; unit: weight.
        zeros: the code that means zero, 1 to 2**bits - 1 (a zero point of 0 wraps round in v1).
        group_of: the group of each column.
        bits: 2, 3, 4 or 8.
    Raises:
        ShapeMismatch: rows or columns do not fill whole words.
    """
    return Packed(
        qweight=pack_words(codes.T, bits),
        qzeros=pack_words((zeros - 1).to(torch.uint8) & (2**bits - 1), bits).T.contiguous(),
        scales=scales.T.contiguous(),
        g_idx=group_of,
    )


def dequantize(packed: Packed, *, bits: int, zero_offset: int) -> Float32[Tensor, "rows cols"]:
    """The weights that a loader computes with, in fp32.

    Args:
        packed: as on disk.
        bits: 2, 3, 4 or 8.
        zero_offset: what the format adds to a stored zero point, 1 in v1 and 0 in v2.
    """
    codes = unpack_words(packed.qweight, bits).to(torch.float32)
    zeros = unpack_words(packed.qzeros.T, bits).T.to(torch.float32) + zero_offset
    zeros = torch.where(zeros >= 2**bits, zeros - 2**bits, zeros) if zero_offset else zeros
    groups = packed.g_idx.long()
    codes -= zeros[groups]
    codes *= packed.scales.to(torch.float32)[groups]
    return codes.T.contiguous()


def pack_words(codes: UInt8[Tensor, "values rows"], bits: int) -> Int32[Tensor, "words rows"]:
    """Lay codes down as one little-endian stream of bits per row, cut into 32-bit words.

    Raises:
        ShapeMismatch: the codes of a row do not fill whole words.
    """
    per_block = WORD // gcd(WORD, bits)
    words_per_block = per_block * bits // WORD
    values, rows = codes.shape
    if values % per_block:
        raise ShapeMismatch(
            f"{values} codes of {bits} bits do not fill whole 32-bit words",
            next_step=f"use a width that is a multiple of {per_block}",
        )
    blocks = codes.reshape(values // per_block, per_block, rows).to(torch.int64)
    words = torch.zeros(
        values // per_block, words_per_block, rows, dtype=torch.int64, device=codes.device
    )
    for place in range(per_block):
        word, shift = divmod(place * bits, WORD)
        words[:, word] |= (blocks[:, place] << shift) & 0xFFFFFFFF
        if shift + bits > WORD:
            words[:, word + 1] |= blocks[:, place] >> (WORD - shift)
    words = torch.where(words >= 2**31, words - 2**32, words)
    return words.reshape(-1, rows).to(torch.int32)


def unpack_words(words: Int32[Tensor, "words rows"], bits: int) -> UInt8[Tensor, "values rows"]:
    """The inverse of `pack_words`."""
    per_block = WORD // gcd(WORD, bits)
    words_per_block = per_block * bits // WORD
    rows = words.shape[1]
    blocks = words.to(torch.int64).reshape(-1, words_per_block, rows) & 0xFFFFFFFF
    codes = torch.empty(blocks.shape[0], per_block, rows, dtype=torch.uint8, device=words.device)
    for place in range(per_block):
        word, shift = divmod(place * bits, WORD)
        value = blocks[:, word] >> shift
        if shift + bits > WORD:
            value = value | (blocks[:, word + 1] << (WORD - shift))
        codes[:, place] = (value & (2**bits - 1)).to(torch.uint8)
    return codes.reshape(-1, rows)


def slots(linear: str, rows: int, cols: int, *, groups: int, bits: int) -> dict[str, Slot]:
    """Names, types and shapes of a packed layer on disk, before it is solved."""
    return {
        f"{linear}.qweight": Slot(torch.int32, (cols * bits // WORD, rows)),
        f"{linear}.qzeros": Slot(torch.int32, (groups, rows * bits // WORD)),
        f"{linear}.scales": Slot(torch.float16, (groups, rows)),
        f"{linear}.g_idx": Slot(torch.int32, (cols,)),
    }


def read_linear(checkpoint: Checkpoint, linear: str) -> Tensor:
    """The weight of a linear layer, [rows cols], dequantized to fp32 where it is packed.

    Raises:
        CheckpointProblem: packed in a way that is not the GPTQ layout, or parts are missing or
            contradict one another.
    """
    if f"{linear}.weight" in checkpoint.tensors or checkpoint.quantization is None:
        return checkpoint.read(f"{linear}.weight")
    config = settings_of(checkpoint.quantization, linear)
    if config is None:
        return checkpoint.read(f"{linear}.weight")
    layout = config.get("checkpoint_format", "gptq")
    if config.get("quant_method") != "gptq" or str(layout) not in ZERO_OFFSET:
        raise CheckpointProblem(
            f"{checkpoint.folder} is quantized as {config.get('quant_method')}/{layout}",
            next_step=f"give a GPTQ checkpoint ({' or '.join(ZERO_OFFSET)})",
        )
    bits = config.get("bits")
    where = f" of {linear}" if checkpoint.quantization.get("dynamic") else ""
    if not isinstance(bits, int) or bits not in BITS:
        raise CheckpointProblem(
            f"{checkpoint.folder} has {bits} bits per weight{where}", next_step=f"use one of {BITS}"
        )
    packed = read_packed(checkpoint, linear, bits)
    return dequantize(packed, bits=bits, zero_offset=ZERO_OFFSET[layout])


def read_packed(checkpoint: Checkpoint, linear: str, bits: int) -> Packed:
    """The parts of a layer, seen to fit together: a wrong group would be another scale.

    Raises:
        CheckpointProblem: parts are missing or contradict one another.
    """
    scales, g_idx = (checkpoint.info(f"{linear}.{part}").shape for part in PARTS[2:])
    groups, rows = scales if len(scales) == 2 else (0, 0)
    cols = g_idx[0] if len(g_idx) == 1 else 0
    for name, slot in slots(linear, rows, cols, groups=groups, bits=bits).items():
        shape = checkpoint.info(name).shape
        if shape != slot.shape:
            raise ShapeMismatch(
                f"{checkpoint.folder} holds {name!r} as {list(shape)}, its scales and g_idx ask "
                f"for {list(slot.shape)}",
                next_step=AGAIN,
            )
    packed = Packed(*(checkpoint.read(f"{linear}.{part}") for part in PARTS))
    if not bool(((packed.g_idx >= 0) & (packed.g_idx < groups)).all()):
        raise CheckpointProblem(
            f"{checkpoint.folder} holds '{linear}.g_idx' with groups beyond the {groups} that "
            "have scales",
            next_step=AGAIN,
        )
    return packed
