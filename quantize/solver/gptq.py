"""The GPTQ solver: round column by column, and let the columns still free make up for the error.

Pure: weight and Hessian in, codes and grid out. It knows no model and no file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from camelpress.quantize.kernels.kernel import LAZY_BATCH_COLUMNS, Kernel
from camelpress.quantize.solver.damping import damped_cholesky, invert_lower
from camelpress.quantize.solver.grid import QuantGrid

FALLBACK = "nearest"


@dataclass(frozen=True)
class HessianFactor:
    """What the solver asks of a Hessian, and what it took to get there."""

    order: Int64[Tensor, " cols"]  # of solving
    upper: Float32[Tensor, "cols cols"]  # Cholesky factor of the inverse, in that order
    damp_percent: float
    rescue: str  # "" | "float64" | "damped" | FALLBACK


@dataclass(frozen=True)
class GptqSolution:
    """Codes, natural order, and the grid that they are on."""

    codes: UInt8[Tensor, "rows cols"]
    grid: QuantGrid


def activation_order(
    diagonal: Float32[Tensor, " cols"], *, group_size: int
) -> Int64[Tensor, " cols"]:
    """Columns by falling mean square of their input, whole groups at a time.

    The costliest are rounded first, while most others are still free to make up for them. Groups
    are ordered by their costliest column, columns within their group; so a group is solved in one
    go, and its grid can be chosen when it is reached, for the columns as they are by then.

    Args:
        diagonal: of the Hessian.
        group_size: columns that share a scale; -1 for all of a row.
    """
    groups = diagonal.reshape(
        1 if group_size == -1 else -1, len(diagonal) if group_size == -1 else group_size
    )
    within = groups.argsort(dim=1, descending=True, stable=True)
    first = torch.arange(0, len(diagonal), groups.shape[1], device=diagonal.device)
    by_group = groups.amax(dim=1).argsort(descending=True, stable=True)
    return (within + first[:, None])[by_group].flatten()


def factorize_hessian(
    hessian: Float32[Tensor, "cols cols"], order: Int64[Tensor, " cols"], *, damp_percent: float
) -> HessianFactor:
    """Damp and invert a Hessian.

    The factor of the inverse is the inverse of the factor that begins at the other end, so that
    the inverse itself is never made.

    Args:
        hessian: sum of x xᵀ, undamped; unit: activation squared.
        order: columns as they will be solved.
        damp_percent: fraction of mean(diag H) added to the diagonal.
    Returns:
        U with Uᵀ U = H⁻¹, upper triangular.
    Raises:
        NotPositiveDefinite: not even 100 times the damping helps.
    Source:
        Frantar et al., arXiv:2210.17323, section 3.3 (Cholesky reformulation).
    """
    damped = damped_cholesky(hessian, order.flip(0), damp_percent=damp_percent)
    invert_lower(damped.lower)
    upper = damped.lower.flip(0, 1).to(torch.float32)
    return HessianFactor(order, upper, damped.damp_percent, damped.rescue)


def factorize_diagonal(
    hessian: Float32[Tensor, "cols cols"], order: Int64[Tensor, " cols"], *, damp_percent: float
) -> HessianFactor:
    """What is left when `factorize` gives up: every weight is rounded to nearest.

    Raises:
        NotPositiveDefinite: not even the diagonal makes sense.
    """
    diagonal = torch.diag(hessian.diagonal())
    return replace(factorize_hessian(diagonal, order, damp_percent=damp_percent), rescue=FALLBACK)


def solve_gptq(
    weight: Float32[Tensor, "rows cols"],
    factor: HessianFactor,
    kernel: Kernel,
    *,
    bits: int,
    group_size: int,
    sym: bool,
) -> GptqSolution:
    """Round one linear layer, moving each column's error to the columns not yet rounded.

    The grid of a group is searched for when the solver gets there. Each column counts by what an
    error in it costs after all later columns have made up for it, which is 1 / U_jj².

    Args:
        weight: rows are outputs, columns are inputs, in their natural order.
        factor: of the Hessian; its order keeps the columns of a group together.
        kernel: of the weight's device.
        bits: 2, 3, 4 or 8.
        group_size: neighbouring columns that share a scale, in the natural order: the order of
            solving stays inside, and no loader has to know it; -1 for all of a row.
        sym: zero stands at 2**(bits-1).
    Raises:
        NumericsProblem: weights so large that a scale is not finite in fp16.
    Source:
        Frantar et al., arXiv:2210.17323, algorithm 1; IST-DASLab/gptq 2d65066, gptq.py. Ours
        differs: the grid is in fp16 already and searched for with either sign, the order keeps
        groups together, and the columns lie in memory as rows.
    """
    size = weight.shape[1] if group_size == -1 else group_size
    columns = weight.T[factor.order].contiguous()
    importance = factor.upper.diagonal().square().reciprocal()
    codes = torch.empty_like(columns, dtype=torch.uint8)
    scales, zeros = (columns.new_empty(len(weight), len(columns) // size) for _ in range(2))
    for group in range(0, len(columns), size):
        scale, zero = kernel.search_group(
            columns[group : group + size], importance[group : group + size], bits=bits, sym=sym
        )
        place = int(factor.order[group]) // size
        scales[:, place], zeros[:, place] = scale, zero
        for start in range(group, group + size, LAZY_BATCH_COLUMNS):
            stop = min(start + LAZY_BATCH_COLUMNS, group + size)
            codes[start:stop], errors = kernel.round_columns(
                columns[start:stop],
                factor.upper[start:stop, start:stop],
                scale,
                zero,
                top=2**bits - 1,
            )
            columns[stop:].addmm_(factor.upper[start:stop, stop:].T, errors, alpha=-1)
    natural = torch.empty_like(codes)
    natural[factor.order] = codes
    return GptqSolution(
        natural.T.contiguous(), QuantGrid.from_float32(scales, zeros, bits=bits, group_size=size)
    )
