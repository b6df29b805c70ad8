"""A slow twin of the packed layout: Python integers, one value at a time.

Written from the format alone. A row of codes is one contiguous stream of bits, the lowest bit of
the first code first; it is cut into 32-bit words, lowest bits first, that are stored as signed
integers. On disk columns (inputs) come before rows (outputs), zero points are packed along the
rows, and version 1 of the format stores each zero point minus one.

compressed-tensors lays rows (outputs) down one below the other, its zero points along the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

Value = TypeVar("Value")
Matrix = list[list[int]]


class Layer(NamedTuple):
    """The four tensors of a packed layer."""

    qweight: Matrix
    qzeros: Matrix
    scales: list[list[float]]
    g_idx: list[int]


def pack_stream(codes: Sequence[int], bits: int) -> list[int]:
    """The words of one row of codes; the last need not be full."""
    words = [0] * -(-len(codes) * bits // 32)
    for number, code in enumerate(codes):
        for bit in range(bits):
            place = number * bits + bit
            words[place // 32] |= (code >> bit & 1) << place % 32
    return [signed(word) for word in words]


def unpack_stream(words: Sequence[int], bits: int) -> list[int]:
    """The codes of one row of words."""
    codes = [0] * (len(words) * 32 // bits)
    for number in range(len(codes)):
        for bit in range(bits):
            place = number * bits + bit
            codes[number] |= (words[place // 32] >> place % 32 & 1) << bit
    return codes


def pack_layer(
    codes: Matrix,
    scales: list[list[float]],
    zeros: Matrix,
    group_of: list[int],
    *,
    bits: int,
    stored_minus: int = 1,
) -> Layer:
    """A layer on disk, from codes [rows][cols] and zero points and scales [rows][groups]."""
    return Layer(
        qweight=turned([pack_stream(row, bits) for row in codes]),
        qzeros=[
            pack_stream([(zero - stored_minus) % 2**bits for zero in of_group], bits)
            for of_group in turned(zeros)
        ],
        scales=turned(scales),
        g_idx=list(group_of),
    )


def dequantize(layer: Layer, *, bits: int, stored_minus: int = 1) -> list[list[float]]:
    """The weights [rows][cols] that a layer on disk stands for."""
    codes = [unpack_stream(words, bits) for words in turned(layer.qweight)]
    zeros = [unpack_stream(words, bits) for words in layer.qzeros]
    weights: list[list[float]] = []
    for row, of_row in enumerate(codes):
        weights.append([])
        for column, code in enumerate(of_row):
            group = layer.g_idx[column]
            zero = (zeros[group][row] + stored_minus) % 2**bits
            weights[-1].append(layer.scales[group][row] * (code - zero))
    return weights


def pack_compressed(
    codes: Matrix, scales: list[list[float]], zeros: Matrix | None, *, bits: int
) -> dict[str, list[Any]]:
    """The parts of a layer of compressed-tensors, zero points left out where it is symmetric."""
    parts: dict[str, list[Any]] = {
        "weight_packed": [pack_stream(row, bits) for row in codes],
        "weight_scale": scales,
        "weight_shape": [len(codes), len(codes[0])],
    }
    if zeros is not None:
        parts["weight_zero_point"] = turned(
            [pack_stream(of_group, bits) for of_group in turned(zeros)]
        )
    return parts


def turned(matrix: list[list[Value]]) -> list[list[Value]]:
    """Rows for columns."""
    return [list(column) for column in zip(*matrix, strict=True)]


def signed(word: int) -> int:
    """A 32-bit word as a signed integer."""
    return word - 2**32 if word >= 2**31 else word
