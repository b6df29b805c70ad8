"""Kernel protocol: the inner loops of the solver, too slow as chains of tensor operations.

Every implementation computes the same result: `reference_kernel` in torch is the oracle,
`cpu_kernel` is compiled for CPUs, and `cuda_kernel` for GPUs. Rows are independent in all of them,
so results do not depend on the division of rows among threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

MIN_SCALE = 2.0**-24  # smallest positive fp16 number, a subnormal that loaders support
SHRINK_FACTORS = tuple(1 - step / 40 for step in range(21))  # candidate fractions of a span
LAZY_BATCH_COLUMNS = 128  # columns rounded before one product spreads their errors


@dataclass(frozen=True)
class GroupResult:
    """Codes and grid of columns that share a grid, and the errors to move to later columns."""

    codes: UInt8[Tensor, "cols rows"]
    errors: Float32[Tensor, "cols rows"]  # divided by the diagonal of the inverse's factor
    scales: Float32[Tensor, " rows"]
    zeros: Float32[Tensor, " rows"]

    @classmethod
    def allocate(cls, columns: Float32[Tensor, "cols rows"]) -> GroupResult:
        """Allocates the results of a group on its device, for a kernel to fill."""
        return cls(
            torch.empty_like(columns, dtype=torch.uint8),
            torch.empty_like(columns),
            torch.empty_like(columns[0]),
            torch.empty_like(columns[0]),
        )


@runtime_checkable
class Kernel(Protocol):
    """Inner loops of the solver for one kind of device.

    A group of at most `LAZY_BATCH_COLUMNS` columns takes one call of `round_group`. A longer group
    takes one call of `search_group`, then one of `round_columns` for each batch of columns.
    """

    def round_group(
        self,
        columns: Float32[Tensor, "cols rows"],
        upper: Float32[Tensor, "cols cols"],
        importance: Float32[Tensor, " cols"],
        *,
        bits: int,
        sym: bool,
    ) -> GroupResult:
        """Searches the grid of one group and rounds its columns.

        Args:
            columns: columns of one group in the order of solving, stored as rows, fp32; at most
                `LAZY_BATCH_COLUMNS`.
            upper: block of these columns in the upper Cholesky factor of the inverse Hessian.
            importance: weight of each column's squared error.
            bits: 2, 3, 4 or 8.
            sym: true for a zero point of 2**(bits-1).
        Returns:
            the results of `search_group` and `round_columns`, one after the other.
        """

    def search_group(
        self,
        columns: Float32[Tensor, "cols rows"],
        importance: Float32[Tensor, " cols"],
        *,
        bits: int,
        sym: bool,
    ) -> tuple[Float32[Tensor, " rows"], Float32[Tensor, " rows"]]:
        """Searches the grid of one group with the smallest weighted squared error.

        The candidates are `SHRINK_FACTORS` times the step that spans the group. A symmetric grid
        has the step 2 max|w| / (2**bits - 1) with either sign, because the codes reach one step
        further on one side. An asymmetric grid spans the smallest to the largest value with three
        candidate zero points; none may be 0, so its span begins at least one step below zero.

        Args:
            columns: columns of one group, stored as rows, fp32.
            importance: weight of each column's squared error.
            bits: 2, 3, 4 or 8.
            sym: true for a zero point of 2**(bits-1).
        Returns:
            scales: fp16 numbers of magnitude `MIN_SCALE` or more, positive or negative, in units
                of the weight; infinity if no grid has a finite error.
            zeros: zero points, from 1 to 2**bits - 1.
        """

    def round_columns(
        self,
        columns: Float32[Tensor, "cols rows"],
        upper: Float32[Tensor, "cols cols"],
        scales: Float32[Tensor, " rows"],
        zeros: Float32[Tensor, " rows"],
        *,
        top: int,
    ) -> tuple[UInt8[Tensor, "cols rows"], Float32[Tensor, "cols rows"]]:
        """Rounds column by column, moving the error of each column to the later ones.

        Args:
            columns: columns of one group in the order of solving, fp32.
            upper: block of these columns in the upper Cholesky factor of the inverse Hessian.
            scales: scale of each row.
            zeros: zero point of each row.
            top: the largest code.
        Returns:
            codes, and the error of each column divided by its diagonal element of `upper`.
        """
