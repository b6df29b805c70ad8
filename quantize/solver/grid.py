"""Quantization grid: one scale and zero point per row and group.

Scales are fp16 numbers from the start, as stored and as used by loaders. A scale may be negative:
the codes of a symmetric grid reach one step further on one side, and the sign selects the
side. `search_group` of a kernel chooses the sign.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float16, Float32, Int32, Int64, UInt8
from torch import Tensor

from camelpress.core.errors import NumericsProblem
from camelpress.quantize.kernels.kernel import Kernel


@dataclass(frozen=True)
class QuantGrid:
    """Grid of a weight matrix: weight = scales * (code - zeros), with code in 0 ... 2**bits - 1."""

    scales: Float16[Tensor, "rows groups"]
    zeros: UInt8[Tensor, "rows groups"]
    bits: int
    group_size: int  # neighbouring columns that share a scale

    @classmethod
    def from_float32(
        cls,
        scales: Float32[Tensor, "rows groups"],
        zeros: Float32[Tensor, "rows groups"],
        *,
        bits: int,
        group_size: int,
    ) -> QuantGrid:
        """Converts scales and zero points computed in fp32 to their stored dtypes.

        Args:
            scales: numbers with an exact fp16 value.
            zeros: whole numbers from 0 to 255.
            bits: 2, 3, 4 or 8.
            group_size: neighbouring columns that share a scale.
        """
        return cls(scales.to(torch.float16), zeros.to(torch.uint8), bits, group_size)

    @property
    def max_code(self) -> int:
        """The largest code."""
        return 2**self.bits - 1

    def expand_columns(self, values: Tensor) -> Float32[Tensor, "rows cols"]:
        """Repeats scales or zero points for each column of their group, in fp32."""
        return values.to(torch.float32).repeat_interleave(self.group_size, dim=1)

    def column_groups(self) -> Int32[Tensor, " cols"]:
        """Returns the group index of each column."""
        groups = torch.arange(self.scales.shape[1], dtype=torch.int32, device=self.scales.device)
        return groups.repeat_interleave(self.group_size)

    def infinite_scales(self) -> Int64[Tensor, " rows"]:
        """Returns the number of scales of each row that do not fit fp16."""
        return (~self.scales.isfinite()).sum(dim=1)

    def select_rows(self, rows: slice) -> QuantGrid:
        """Returns the grid of a range of rows."""
        return QuantGrid(self.scales[rows], self.zeros[rows], self.bits, self.group_size)


def search_grid(
    weight: Float32[Tensor, "rows cols"],
    kernel: Kernel,
    *,
    importance: Float32[Tensor, " cols"],
    bits: int,
    group_size: int,
    sym: bool,
) -> QuantGrid:
    """Searches the grid with the smallest weighted squared error of rounding to nearest.

    Args:
        weight: fp32 weight; rows are outputs, and cols is a multiple of the group size.
        kernel: kernel of the weight's device.
        importance: weight of each column's squared error.
        bits: 2, 3, 4 or 8.
        group_size: columns that share a scale; -1 for the whole row.
        sym: true for zero points at 2**(bits-1), false for zero points of at least 1 (some loaders
            misread a zero point of 0 in the v1 format).
    Raises:
        NumericsProblem: a weight is so large that a scale is not finite in fp16.
    """
    size = weight.shape[1] if group_size == -1 else group_size
    grids = [
        kernel.search_group(columns, weights, bits=bits, sym=sym)
        for columns, weights in zip(
            weight.T.contiguous().split(size), importance.split(size), strict=True
        )
    ]
    scales, zeros = (torch.stack(parts, dim=1) for parts in zip(*grids, strict=True))
    grid = QuantGrid.from_float32(scales, zeros, bits=bits, group_size=size)
    require_finite_scales(int(grid.infinite_scales().sum()))
    return grid


def require_finite_scales(infinite: int) -> None:
    """Refuses a layer with scales beyond fp16.

    Args:
        infinite: number of its scales that do not fit fp16.
    Raises:
        NumericsProblem: the number is not 0.
    """
    if infinite:
        raise NumericsProblem(
            f"{infinite} scales of a layer do not fit float16",
            next_step="check the checkpoint: its weights are too large",
        )


def round_to_nearest(
    weight: Float32[Tensor, "rows cols"], grid: QuantGrid
) -> UInt8[Tensor, "rows cols"]:
    """Rounds every weight to its nearest code, the baseline for GPTQ."""
    codes = (weight / grid.expand_columns(grid.scales)).round() + grid.expand_columns(grid.zeros)
    return codes.clamp(0, grid.max_code).to(torch.uint8)


def dequantize_codes(
    codes: UInt8[Tensor, "rows cols"], grid: QuantGrid
) -> Float32[Tensor, "rows cols"]:
    """Returns the fp32 weights of codes, exactly as a loader computes them."""
    return (codes.float() - grid.expand_columns(grid.zeros)) * grid.expand_columns(grid.scales)
