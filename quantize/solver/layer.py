"""Quantizes one weight matrix with its Hessian, in blocks of rows.

Rows are independent once the Hessian is factorized. Blocks of a fixed height bound the memory, and
several processes can share them without changing a bit of the result.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from camelpress.core.errors import NotPositiveDefinite
from camelpress.core.packing.gptq_format import GptqTensors, pack_gptq
from camelpress.core.packing.row_loss import mean_row_loss
from camelpress.inference.streaming.process_group import ProcessGroup
from camelpress.quantize.kernels.device_kernels import pick_kernel
from camelpress.quantize.settings import QuantizeSettings
from camelpress.quantize.solver.gptq import (
    GptqSolution,
    HessianFactor,
    activation_order,
    factorize_diagonal,
    factorize_hessian,
    solve_gptq,
)
from camelpress.quantize.solver.grid import QuantGrid, dequantize_codes

SOLVE_ROWS = 1024  # rows of a block


@dataclass(frozen=True)
class RoundedMatrix:
    """Quantized matrix, or a range of its rows, with the error of each row."""

    solution: GptqSolution
    error: Float64[Tensor, " rows"]  # squared output error, summed over the tokens
    energy: Float64[Tensor, " rows"]  # squared output, summed over the tokens

    @classmethod
    def concatenate(cls, parts: list[RoundedMatrix]) -> RoundedMatrix:
        """Concatenates ranges of rows."""
        grids = [part.solution.grid for part in parts]
        grid = QuantGrid(
            torch.cat([grid.scales for grid in grids]),
            torch.cat([grid.zeros for grid in grids]),
            grids[0].bits,
            grids[0].group_size,
        )
        return cls(
            GptqSolution(torch.cat([part.solution.codes for part in parts]), grid),
            torch.cat([part.error for part in parts]),
            torch.cat([part.energy for part in parts]),
        )

    def to(self, device: torch.device) -> RoundedMatrix:
        """Returns a copy on another device."""
        grid = self.solution.grid
        grid = replace(grid, scales=grid.scales.to(device), zeros=grid.zeros.to(device))
        return RoundedMatrix(
            GptqSolution(self.solution.codes.to(device), grid),
            self.error.to(device),
            self.energy.to(device),
        )

    def dequantize_rows(self, rows: slice) -> Float32[Tensor, "rows cols"]:
        """Returns the dequantized weights of a range of rows."""
        return dequantize_codes(self.solution.codes[rows], self.solution.grid.select_rows(rows))

    def pack_rows(self, rows: slice) -> GptqTensors:
        """Packs a range of rows in the GPTQ format."""
        grid = self.solution.grid.select_rows(rows)
        return pack_gptq(
            self.solution.codes[rows], grid.scales, grid.zeros, grid.column_groups(), bits=grid.bits
        )

    def relative_error(self, rows: slice) -> float:
        """Returns the squared output error over the squared output, both summed over rows."""
        energy = float(self.energy[rows].sum())
        return float(self.error[rows].sum()) / energy if energy else 0.0

    def loss(self, rows: slice) -> float:
        """Returns the mean over rows of squared output error over squared output."""
        return mean_row_loss(self.error[rows], self.energy[rows])


def round_layer(
    weight: Float32[Tensor, "rows cols"],
    hessian: Float32[Tensor, "cols cols"],
    processes: ProcessGroup,
    settings: QuantizeSettings,
) -> tuple[RoundedMatrix, HessianFactor]:
    """Quantizes a matrix.

    Args:
        weight: fp32 weight of all layers that share the input.
        hessian: Hessian of that input, equal on all ranks.
        processes: process group; every rank gets the whole result.
        settings: settings of the layers.
    Returns:
        the quantized matrix, and the factor of its Hessian.
    Raises:
        NotPositiveDefinite: the Hessian has no Cholesky factor at any damping tried, and no
            fallback is allowed.
        NumericsProblem: a weight is so large that a scale is not finite in fp16.
    """
    order = activation_order(hessian.diagonal(), group_size=settings.group_size)
    try:
        factor = factorize_hessian(hessian, order, damp_percent=settings.damp_percent)
    except NotPositiveDefinite:
        if not settings.max_fallbacks:
            raise
        factor = factorize_diagonal(hessian, order, damp_percent=settings.damp_percent)

    blocks = [slice(start, start + SOLVE_ROWS) for start in range(0, len(weight), SOLVE_ROWS)]
    with processes.raise_together():
        parts = [
            _round_rows(weight[rows], hessian, factor, settings)
            for rows in processes.items_of_rank(blocks)
        ]
    if processes.size > 1:  # exchange on the CPU: no process sees the GPUs of the others
        cpu = torch.device("cpu")
        gathered = processes.all_gather([part.to(cpu) for part in parts], len(blocks))
        parts = [part.to(weight.device) for part in gathered]
    return RoundedMatrix.concatenate(parts), factor


def _round_rows(
    weight: Float32[Tensor, "rows cols"],
    hessian: Float32[Tensor, "cols cols"],
    factor: HessianFactor,
    settings: QuantizeSettings,
) -> RoundedMatrix:
    solution = solve_gptq(
        weight,
        factor,
        pick_kernel(weight.device),
        bits=settings.bits,
        group_size=settings.group_size,
        sym=settings.sym,
    )
    error = dequantize_codes(solution.codes, solution.grid) - weight
    return RoundedMatrix(solution, _output_energy(error, hessian), _output_energy(weight, hessian))


def _output_energy(
    weight: Float32[Tensor, "rows cols"], hessian: Float32[Tensor, "cols cols"]
) -> Float64[Tensor, " rows"]:
    """Returns the squared output of each row in fp64, because fp32 underflows for tiny weights.

    Rows are divided by a power of two, which is exact.
    """
    exponents = torch.frexp(weight.abs().amax(dim=1)).exponent
    units = torch.ldexp(torch.ones_like(weight[:, 0]), exponents)
    rows = weight / units[:, None]
    return (rows @ hessian).mul_(rows).sum(dim=1).double() * units.double().square()
