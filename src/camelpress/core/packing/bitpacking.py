"""Packs codes of 2 to 8 bits into 32-bit words: one little-endian bit stream, low bits first.

All packed formats use this stream; they differ in its direction along rows or columns.

Source: AutoGPTQ/AutoGPTQ 9f7d370 (qlinear packing); vllm-project/compressed-tensors 0.19.0
(compressors/pack_quantized/helpers.py).
"""

from __future__ import annotations

from math import gcd

import torch
from jaxtyping import Int32, UInt8
from torch import Tensor

from camelpress.core.errors import ShapeMismatch

WORD_BITS = 32


def pack_words(codes: UInt8[Tensor, "values rows"], bits: int) -> Int32[Tensor, "words rows"]:
    """Packs the codes of each row into one little-endian bit stream of 32-bit words.

    Args:
        codes: Codes, 0 to 2**bits - 1, [values rows].
        bits: Bits per code, 2 to 8.
    Raises:
        ShapeMismatch: The codes of a row do not fill whole words.
    """
    per_block = WORD_BITS // gcd(WORD_BITS, bits)
    words_per_block = per_block * bits // WORD_BITS
    values, rows = codes.shape
    if values % per_block:
        raise ShapeMismatch(
            f"{values} codes of {bits} bits do not fill whole 32-bit words",
            next_step=f"use a width that is a multiple of {per_block}",
        )
    blocks = codes.reshape(values // per_block, per_block, rows)
    words = torch.zeros(
        values // per_block, words_per_block, rows, dtype=torch.int64, device=codes.device
    )
    for index in range(per_block):
        word, shift = divmod(index * bits, WORD_BITS)
        value = blocks[:, index].to(torch.int64)
        words[:, word] |= (value << shift) & 0xFFFFFFFF
        if shift + bits > WORD_BITS:
            words[:, word + 1] |= value >> (WORD_BITS - shift)
    words = torch.where(words >= 2**31, words - 2**32, words)
    return words.reshape(-1, rows).to(torch.int32)


def unpack_words(words: Int32[Tensor, "words rows"], bits: int) -> UInt8[Tensor, "values rows"]:
    """Unpacks words into codes; the inverse of `pack_words`."""
    per_block = WORD_BITS // gcd(WORD_BITS, bits)
    words_per_block = per_block * bits // WORD_BITS
    rows = words.shape[1]
    blocks = words.to(torch.int64).reshape(-1, words_per_block, rows) & 0xFFFFFFFF
    codes = torch.empty(blocks.shape[0], per_block, rows, dtype=torch.uint8, device=words.device)
    for index in range(per_block):
        word, shift = divmod(index * bits, WORD_BITS)
        value = blocks[:, word] >> shift
        if shift + bits > WORD_BITS:
            value = value | (blocks[:, word + 1] << (WORD_BITS - shift))
        codes[:, index] = (value & (2**bits - 1)).to(torch.uint8)
    return codes.reshape(-1, rows)
