"""The grid a weight is rounded to: scale and zero point per row and group.

Scales are fp16 numbers from the start, because that is what is stored and computed with.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float16, Float32, Int32, UInt8
from torch import Tensor

from camelpress.core.errors import NumericsProblem

SMALLEST_SCALE = 2.0**-14  # the smallest normal fp16 number


@dataclass(frozen=True)
class Grid:
    """weight = scales * (code - zeros), code in 0 ... 2**bits - 1."""

    scales: Float16[Tensor, "rows groups"]
    zeros: UInt8[Tensor, "rows groups"]
    group_of: Int32[Tensor, " cols"]
    bits: int

    @property
    def top(self) -> int:
        """The largest code."""
        return 2**self.bits - 1


def fit(weight: Float32[Tensor, "rows cols"], *, bits: int, group_size: int, sym: bool) -> Grid:
    """The grid that spans each group's range.

    Args:
        weight: rows are outputs; cols is a multiple of the group size.
        bits: 2, 3, 4 or 8.
        group_size: columns that share a scale; -1 for all of a row.
        sym: zero stands at 2**(bits-1) and the scale is 2 max|w| / (2**bits - 1); otherwise the
            range is widened to hold 0, and the zero point is an integer of at least 1 (a zero
            point of 0 does not survive the v1 format in every loader): where it would be 0, the
            step grows until the codes from 1 upwards reach the largest weight.
    Raises:
        NumericsProblem: weights so large that a scale is not finite in fp16.
    Source:
        IST-DASLab/gptq 2d65066, quant.py, find_params; ours rounds the scale to fp16 first and
        chooses the zero point for the rounded scale.
    """
    rows, cols = weight.shape
    size = cols if group_size == -1 else group_size
    grouped = weight.reshape(rows, cols // size, size)
    top = 2**bits - 1
    if sym:
        scales = _fp16(grouped.abs().amax(dim=2) * (2 / top))
        zeros = torch.full_like(scales, 2 ** (bits - 1), dtype=torch.uint8)
    else:
        low = grouped.amin(dim=2).clamp(max=0)
        high = grouped.amax(dim=2).clamp(min=0)
        scales = _fp16((high - low) / top)
        above_zero = (-low / scales.float()).round() < 1
        scales = torch.where(above_zero, _fp16(high / (top - 1)), scales)
        zeros = (-low / scales.float()).round().clamp(1, top).to(torch.uint8)
    if not bool(scales.isfinite().all()):
        raise NumericsProblem(
            f"{int((~scales.isfinite()).sum())} scales of a layer do not fit float16",
            next_step="check the checkpoint: its weights are too large",
        )
    group_of = torch.arange(cols, dtype=torch.int32, device=weight.device) // size
    return Grid(scales, zeros, group_of, bits)


def nearest(weight: Float32[Tensor, "rows cols"], grid: Grid) -> UInt8[Tensor, "rows cols"]:
    """Round every weight to its nearest code: the baseline that GPTQ has to beat."""
    groups = grid.group_of.long()
    codes = (weight / grid.scales.float()[:, groups]).round() + grid.zeros[:, groups]
    return codes.clamp(0, grid.top).to(torch.uint8)


def values(codes: UInt8[Tensor, "rows cols"], grid: Grid) -> Float32[Tensor, "rows cols"]:
    """What the codes stand for: exactly what a loader computes with."""
    groups = grid.group_of.long()
    return (codes.float() - grid.zeros.float()[:, groups]) * grid.scales.float()[:, groups]


def _fp16(scales: Float32[Tensor, "rows groups"]) -> Float16[Tensor, "rows groups"]:
    return scales.clamp(min=SMALLEST_SCALE).to(torch.float16)
