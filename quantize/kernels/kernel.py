"""The two inner loops of the solver, which no chain of tensor operations runs fast.

Each has the same meaning on every device: `kernel_plain` says it in torch and is the oracle,
`kernel_cpu` compiles it for a processor, `kernel_cuda` for a GPU. Rows never meet in any of them,
so that a result does not depend on how rows are shared out.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

MIN_SCALE = 2.0**-24  # smallest fp16 number, subnormal: loaders multiply by it like any other
SHRINK_FACTORS = tuple(1 - step / 40 for step in range(21))  # of a group's span, tried as its grid
LAZY_BATCH_COLUMNS = 128  # rounded before their error is spread over the rest in one product


@runtime_checkable
class Kernel(Protocol):
    """What a device must be able to do."""

    def search_group(
        self,
        columns: Float32[Tensor, "cols rows"],
        importance: Float32[Tensor, " cols"],
        *,
        bits: int,
        sym: bool,
    ) -> tuple[Float32[Tensor, " rows"], Float32[Tensor, " rows"]]:
        """The grid of one group that rounds its columns with the least weighted squared error.

        Tried is each of `SHRINK` times the step that spans the group: if symmetric, 2 max|w| /
        (2**bits - 1) with either sign, because the codes reach one step further on one side; if
        not, the step from the least to the largest value, with three zero points; as none of them
        may be 0, the span begins at least one step below zero.

        Args:
            columns: a group's columns as rows.
            importance: weight of each column's squared error.
            bits: 2, 3, 4 or 8.
            sym: the zero point is 2**(bits-1).
        Returns:
            scales: fp16 numbers of at least `SMALLEST_SCALE`, perhaps negative; unit: weight.
                Infinity where no grid has a finite error.
            zeros: codes that mean zero, 1 to 2**bits - 1.
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
        """Round column by column, moving each one's error to those after it.

        Args:
            columns: of one group, in the order of solving; used up.
            upper: their part of the upper Cholesky factor of the inverse Hessian.
            scales: per row.
            zeros: per row.
            top: the largest code.
        Returns:
            codes, and each column's error over its diagonal element of `upper`.
        """


def pick_kernel(device: torch.device) -> Kernel:
    """The kernel for a device; the plain one where nothing faster is at hand."""
    if device.type == "cpu":
        from camelpress.quantize.kernels import cpu_kernel

        return cpu_kernel
    if device.type == "cuda" and find_spec("triton"):
        from camelpress.quantize.kernels import cuda_kernel

        return cuda_kernel
    from camelpress.quantize.kernels import reference_kernel

    return reference_kernel
