"""Quantized weight of a linear layer in memory, independent of its format on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Integer, UInt8
from torch import Tensor


@dataclass(frozen=True)
class QuantizedWeight:
    """Codes, scales and zero points of one linear layer.

    weight[row, col] = scales[row, g] * (codes[row, col] - zeros[row, g]) with g = group_index[col].
    Rows are outputs and columns are inputs, as in `torch.nn.Linear.weight`.
    """

    codes: UInt8[Tensor, "rows cols"]  # 0 to 2**bits - 1
    scales: Float[Tensor, "rows groups"]  # unit: weight
    zeros: UInt8[Tensor, "rows groups"]  # code of zero, 0 to 2**bits - 1
    group_index: Integer[Tensor, " cols"]  # group of each column
    bits: int  # bits per code

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "rows cols"]:
        """Returns the weights of a loader, in fp32 by default.

        With 16-bit scales the fp32 weights are exact: a difference of codes has 8 significant bits
        and a scale at most 11, so the product needs 19 of the 24 bits of fp32. In fp64 the weights
        are always exact.
        """
        groups = self.group_index.long()
        weights = self.codes.contiguous().to(dtype)  # transposing bytes is cheaper than floats
        weights -= self.zeros.to(dtype).index_select(1, groups)
        weights *= self.scales.to(dtype).index_select(1, groups)
        return weights

    def slice_rows(self, rows: slice) -> QuantizedWeight:
        """Returns a slice of the rows."""
        return QuantizedWeight(
            self.codes[rows], self.scales[rows], self.zeros[rows], self.group_index, self.bits
        )


class QuantizationParams(NamedTuple):
    """Scales, zero points and group index of a layer, without its codes."""

    scales: Float[Tensor, "rows groups"]
    zeros: UInt8[Tensor, "rows groups"]
    group_index: Integer[Tensor, " cols"]


class PackedShape(NamedTuple):
    """Size and scale dtype of a packed layer, from tensor headers."""

    rows: int
    cols: int
    groups: int
    scale_dtype: torch.dtype


def contiguous_groups(cols: int, groups: int, size: int | None) -> Integer[Tensor, " cols"] | None:
    """Returns the group of each column for contiguous groups; None if the sizes disagree.

    Args:
        cols: Columns of the layer.
        groups: Number of groups with scales.
        size: Columns per group; -1 for one group per row, None for cols / groups.
    """
    if size is None and groups and cols % groups == 0:
        size = cols // groups
    size = cols if size == -1 else size
    if not size or -(-cols // size) != groups:
        return None
    return torch.arange(cols, dtype=torch.int32) // size
