"""One weight matrix from what calibration told of it to codes, row by row.

Rows never meet once the Hessian is factorized. So they are solved in blocks of a fixed height,
which bounds the memory, and which several processes share out without changing a bit.
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
from camelpress.quantize.kernels.kernel import pick_kernel
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

SOLVE_ROWS = 1024  # of a block


@dataclass(frozen=True)
class RoundedMatrix:
    """A matrix, or some rows of one, as it is stored."""

    solved: GptqSolution
    error: Float64[Tensor, " rows"]  # squared, of the output, summed over the tokens
    energy: Float64[Tensor, " rows"]  # squared output, summed over the tokens

    @classmethod
    def concatenate(cls, parts: list[RoundedMatrix]) -> RoundedMatrix:
        """One below the other."""
        grids = [part.solved.grid for part in parts]
        grid = QuantGrid(
            torch.cat([each.scales for each in grids]),
            torch.cat([each.zeros for each in grids]),
            grids[0].bits,
            grids[0].group_size,
        )
        return cls(
            GptqSolution(torch.cat([part.solved.codes for part in parts]), grid),
            torch.cat([part.error for part in parts]),
            torch.cat([part.energy for part in parts]),
        )

    def to(self, device: torch.device) -> RoundedMatrix:
        """The same elsewhere."""
        grid = self.solved.grid
        grid = replace(grid, scales=grid.scales.to(device), zeros=grid.zeros.to(device))
        return RoundedMatrix(
            GptqSolution(self.solved.codes.to(device), grid),
            self.error.to(device),
            self.energy.to(device),
        )

    def dequantize_rows(self, part: slice) -> Float32[Tensor, "rows cols"]:
        """What the codes of some rows stand for."""
        return dequantize_codes(self.solved.codes[part], self.solved.grid.select_rows(part))

    def pack_rows(self, part: slice) -> GptqTensors:
        """Some rows as they lie on disk."""
        grid = self.solved.grid.select_rows(part)
        return pack_gptq(
            self.solved.codes[part], grid.scales, grid.zeros, grid.column_groups(), bits=grid.bits
        )

    def relative_error(self, part: slice) -> float:
        """Squared output error over squared output, both of some rows."""
        energy = float(self.energy[part].sum())
        return float(self.error[part].sum()) / energy if energy else 0.0

    def loss(self, part: slice) -> float:
        """Returns the mean over some rows of squared output error over squared output."""
        return mean_row_loss(self.error[part], self.energy[part])


def round_layer(
    weight: Float32[Tensor, "rows cols"],
    hessian: Float32[Tensor, "cols cols"],
    team: ProcessGroup,
    settings: QuantizeSettings,
) -> tuple[RoundedMatrix, HessianFactor]:
    """Quantize a matrix.

    Args:
        weight: of all layers that share the input.
        hessian: of that input, the same on all ranks.
        team: who takes part; all get the whole result.
        settings: of the layers.
    Returns:
        the matrix, and what it took to factorize its Hessian.
    Raises:
        NotPositiveDefinite: the Hessian has no Cholesky factor however much it is damped, and
            no fallback is allowed.
        NumericsProblem: weights so large that a scale is not finite in fp16.
    """
    order = activation_order(hessian.diagonal(), group_size=settings.group_size)
    try:
        factor = factorize_hessian(hessian, order, damp_percent=settings.damp_percent)
    except NotPositiveDefinite:
        if not settings.max_fallbacks:
            raise
        factor = factorize_diagonal(hessian, order, damp_percent=settings.damp_percent)

    parts = [slice(start, start + SOLVE_ROWS) for start in range(0, len(weight), SOLVE_ROWS)]
    with team.raise_together():
        own = [
            _round_rows(weight[part], hessian, factor, settings)
            for part in team.items_of_rank(parts)
        ]
    if team.size > 1:  # they travel by way of the CPU: no process sees the others' GPUs
        exchanged = team.all_gather([part.to(torch.device("cpu")) for part in own], len(parts))
        own = [part.to(weight.device) for part in exchanged]
    return RoundedMatrix.concatenate(own), factor


def _round_rows(
    weight: Float32[Tensor, "rows cols"],
    hessian: Float32[Tensor, "cols cols"],
    factor: HessianFactor,
    settings: QuantizeSettings,
) -> RoundedMatrix:
    solved = solve_gptq(
        weight,
        factor,
        pick_kernel(weight.device),
        bits=settings.bits,
        group_size=settings.group_size,
        sym=settings.sym,
    )
    error = dequantize_codes(solved.codes, solved.grid) - weight
    return RoundedMatrix(solved, _output_energy(error, hessian), _output_energy(weight, hessian))


def _output_energy(
    weight: Float32[Tensor, "rows cols"], hessian: Float32[Tensor, "cols cols"]
) -> Float64[Tensor, " rows"]:
    """Returns the squared output of each row, in fp64: that of tiny weights is no fp32 number.

    Rows are divided by a power of two, which changes no digit of them.
    """
    exponents = torch.frexp(weight.abs().amax(dim=1)).exponent
    units = torch.ldexp(torch.ones_like(weight[:, 0]), exponents)
    rows = weight / units[:, None]
    return (rows @ hessian).mul_(rows).sum(dim=1).double() * units.double().square()
