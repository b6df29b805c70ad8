"""Quantizes one weight matrix with its Hessian, in blocks of rows.

Rows are independent once the Hessian is factorized. Blocks of a fixed height bound the memory, and
several processes can share them without changing a bit of the result.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float32, Float64, UInt8
from torch import Tensor

from camelpress.core.errors import NotPositiveDefinite
from camelpress.core.packing.gptq_format import GptqTensors, pack_gptq
from camelpress.core.packing.row_loss import mean_row_loss
from camelpress.inference.model.matmul_precision import exact_products
from camelpress.inference.streaming.process_group import ProcessGroup
from camelpress.quantize.kernels.device_kernels import pick_kernel
from camelpress.quantize.settings import QuantizeSettings
from camelpress.quantize.solver.gptq import (
    HessianFactor,
    activation_order,
    factorize_diagonal,
    factorize_hessian,
    solve_gptq,
)
from camelpress.quantize.solver.grid import QuantGrid, dequantize_codes, require_finite_scales

SOLVE_ROWS = 1024  # rows of a block
MAX_SUMMED_BITS = 4  # errors of more bits are so small that the rounding of fp32 shows in their sum
CUDA_SOLVE_ROWS = 8192  # rows of a block on a GPU, 512 programs of the CUDA kernel


@dataclass(frozen=True)
class RoundedMatrix:
    """Quantized matrix, or a range of its rows, with the error of each row."""

    codes: UInt8[Tensor, "rows cols"]
    grid: QuantGrid
    error: Float64[Tensor, " rows"]  # squared output error, summed over the tokens
    energy: Float64[Tensor, " rows"]  # squared output, summed over the tokens

    @classmethod
    def concatenate(cls, parts: list[RoundedMatrix]) -> RoundedMatrix:
        """Concatenates ranges of rows."""
        grids = [part.grid for part in parts]
        grid = QuantGrid(
            torch.cat([grid.scales for grid in grids]),
            torch.cat([grid.zeros for grid in grids]),
            grids[0].bits,
            grids[0].group_size,
        )
        return cls(
            torch.cat([part.codes for part in parts]),
            grid,
            torch.cat([part.error for part in parts]),
            torch.cat([part.energy for part in parts]),
        )

    def to(self, device: torch.device) -> RoundedMatrix:
        """Returns a copy on another device."""
        scales, zeros = self.grid.scales.to(device), self.grid.zeros.to(device)
        return RoundedMatrix(
            self.codes.to(device),
            replace(self.grid, scales=scales, zeros=zeros),
            self.error.to(device),
            self.energy.to(device),
        )

    def with_sums_on_host(self) -> RoundedMatrix:
        """Returns the matrix with the sums of its rows on the CPU, after one copy.

        Raises:
            NumericsProblem: a weight is so large that a scale is not finite in fp16.
        """
        infinite = self.grid.infinite_scales().double()
        error, energy, infinite = torch.stack([self.error, self.energy, infinite]).cpu()
        require_finite_scales(int(infinite.sum()))
        return replace(self, error=error, energy=energy)

    def dequantize_rows(self, rows: slice) -> Float32[Tensor, "rows cols"]:
        """Returns the dequantized weights of a range of rows."""
        return dequantize_codes(self.codes[rows], self.grid.select_rows(rows))

    def pack_rows(self, rows: slice) -> GptqTensors:
        """Packs a range of rows in the GPTQ format."""
        grid = self.grid.select_rows(rows)
        return pack_gptq(
            self.codes[rows], grid.scales, grid.zeros, grid.column_groups(), bits=grid.bits
        )

    def relative_error(self, rows: slice) -> float:
        """Returns the squared output error over the squared output, both summed over rows."""
        energy = float(self.energy[rows].sum())
        return float(self.error[rows].sum()) / energy if energy else 0.0

    def loss(self, rows: slice) -> float:
        """Returns the mean over rows of squared output error over squared output."""
        return mean_row_loss(self.error[rows], self.energy[rows])


def block_rows(device: torch.device) -> int:
    """Returns the number of rows of a block on a device."""
    return CUDA_SOLVE_ROWS if device.type == "cuda" else SOLVE_ROWS


@exact_products()
def round_layer(
    weight: Float32[Tensor, "rows cols"],
    hessian: Float32[Tensor, "cols cols"],
    processes: ProcessGroup,
    settings: QuantizeSettings,
) -> tuple[RoundedMatrix, HessianFactor]:
    """Quantizes a matrix.

    The host waits for the device twice: for the success of the factorization and for the sums of
    the rows. Products are in IEEE fp32, because weights and factors have more bits than TF32.

    Args:
        weight: fp32 weight of all layers that share the input.
        hessian: Hessian of that input, equal on all ranks.
        processes: process group; every rank gets the whole result.
        settings: settings of the layers.
    Returns:
        the quantized matrix with its sums on the CPU, and the factor of its Hessian.
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

    step = block_rows(weight.device)
    blocks = [slice(start, start + step) for start in range(0, len(weight), step)]
    with processes.raise_together():
        parts = [
            _round_rows(weight[rows], hessian, factor, settings)
            for rows in processes.items_of_rank(blocks)
        ]
    if processes.size > 1:  # exchange on the CPU: no process sees the GPUs of the others
        cpu = torch.device("cpu")
        gathered = processes.all_gather([part.to(cpu) for part in parts], len(blocks))
        parts = [part.to(weight.device) for part in gathered]
    return RoundedMatrix.concatenate(parts).with_sums_on_host(), factor


def _round_rows(
    weight: Float32[Tensor, "rows cols"],
    hessian: Float32[Tensor, "cols cols"],
    factor: HessianFactor,
    settings: QuantizeSettings,
) -> RoundedMatrix:
    """Quantizes a range of rows.

    The squared output error is the sum of the solver's squared errors, less the share of damping.
    After a rescue, that share outweighs the rest or the factor is of another matrix; then the
    deviation is multiplied by the Hessian.
    """
    solution = solve_gptq(
        weight,
        factor,
        pick_kernel(weight.device),
        bits=settings.bits,
        group_size=settings.group_size,
        sym=settings.sym,
    )
    deviation = dequantize_codes(solution.codes, solution.grid) - weight
    if factor.rescue or settings.bits > MAX_SUMMED_BITS:
        error = output_energy(deviation, hessian)
    else:
        error = solution.damped_error - _diagonal_energy(deviation, factor.damping)
    energy = output_energy(weight, hessian)
    return RoundedMatrix(solution.codes, solution.grid, error.clamp(min=0), energy)


def output_energy(
    weight: Float32[Tensor, "rows cols"], hessian: Float32[Tensor, "cols cols"]
) -> Float64[Tensor, " rows"]:
    """Returns the squared output of each row in fp64, because fp32 underflows for tiny weights.

    Rows are divided by a power of two, which is exact.
    """
    units = _row_units(weight)
    rows = weight / units[:, None]
    return (rows @ hessian).mul_(rows).sum(dim=1).double() * units.double().square()


def _diagonal_energy(
    weight: Float32[Tensor, "rows cols"], diagonal: Float32[Tensor, " cols"]
) -> Float64[Tensor, " rows"]:
    """Returns the squared output of each row for a diagonal Hessian."""
    units = _row_units(weight)
    return (weight / units[:, None]).square_() @ diagonal * units.double().square()


def _row_units(weight: Float32[Tensor, "rows cols"]) -> Float32[Tensor, " rows"]:
    """Returns a power of two near the largest weight of each row."""
    exponents = torch.frexp(weight.abs().amax(dim=1)).exponent
    return torch.ldexp(torch.ones_like(weight[:, 0]), exponents)
