"""A linear layer as whole numbers, whatever the layout in which it lies on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Integer, UInt8
from torch import Tensor


@dataclass(frozen=True)
class QuantizedWeight:
    """weight[row, col] = scales[row, g] * (codes[row, col] - zeros[row, g])  with g = group_of[col]

    Rows are outputs and columns are inputs, as in `torch.nn.Linear.weight`.
    """

    codes: UInt8[Tensor, "rows cols"]  # 0 to 2**bits - 1
    scales: Float[Tensor, "rows groups"]  # unit: weight
    zeros: UInt8[Tensor, "rows groups"]  # the code that means zero, 0 to 2**bits - 1
    group_index: Integer[Tensor, " cols"]
    bits: int

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "rows cols"]:
        """The weights that a loader computes with in fp32.

        With scales of 16 bits they are exact: a difference of codes has 8 bits and a scale has at
        most 11, so the product needs no more than 19 of the 24 that fp32 has. In fp64 they always
        are.
        """
        groups = self.group_index.long()
        found = self.codes.contiguous().to(dtype)  # bytes are cheaper to turn round than floats
        found -= self.zeros.to(dtype).index_select(1, groups)
        found *= self.scales.to(dtype).index_select(1, groups)
        return found

    def slice_rows(self, part: slice) -> QuantizedWeight:
        """Some of the rows."""
        return QuantizedWeight(
            self.codes[part], self.scales[part], self.zeros[part], self.group_index, self.bits
        )


class QuantizationParams(NamedTuple):
    """A layer without its codes."""

    scales: Float[Tensor, "rows groups"]
    zeros: UInt8[Tensor, "rows groups"]
    group_index: Integer[Tensor, " cols"]


class PackedShape(NamedTuple):
    """What headers tell of a packed layer."""

    rows: int
    cols: int
    groups: int
    scale_dtype: torch.dtype


def contiguous_groups(cols: int, groups: int, size: int | None) -> Integer[Tensor, " cols"] | None:
    """The group of each column where groups are neighbours; None if there are not so many groups.

    Args:
        cols: of the layer.
        groups: that have scales.
        size: columns of a group; -1 for all of them, None for as many as come out even.
    """
    if size is None and groups and cols % groups == 0:
        size = cols // groups
    size = cols if size == -1 else size
    if not size or -(-cols // size) != groups:
        return None
    return torch.arange(cols, dtype=torch.int32) // size
