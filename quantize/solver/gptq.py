"""GPTQ solver: rounds column by column and compensates each error in the remaining columns.

The solver is pure: weight and Hessian in, codes and grid out, without model or files.
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
    """Factor of the inverse Hessian for the solver, with the damping it needed."""

    order: Int64[Tensor, " cols"]  # order in which the columns are solved
    upper: Float32[Tensor, "cols cols"]  # Cholesky factor of the inverse, in that order
    damp_percent: float  # fraction of mean(diag H)
    rescue: str  # "" | "float64" | "damped" | FALLBACK


@dataclass(frozen=True)
class GptqSolution:
    """Codes in natural column order, and their grid."""

    codes: UInt8[Tensor, "rows cols"]
    grid: QuantGrid


def activation_order(
    diagonal: Float32[Tensor, " cols"], *, group_size: int
) -> Int64[Tensor, " cols"]:
    """Returns the columns by falling mean square of their input, with groups kept together.

    The costliest columns are rounded first, while most others can still compensate their errors.
    Groups are ordered by their costliest column, and columns within their group. So a group is
    solved in one go, and its grid can be fitted to the updated columns.

    Args:
        diagonal: diagonal of the Hessian.
        group_size: columns that share a scale; -1 for the whole row.
    """
    groups = diagonal.reshape(
        1 if group_size == -1 else -1, len(diagonal) if group_size == -1 else group_size
    )
    columns = groups.argsort(dim=1, descending=True, stable=True)
    starts = torch.arange(0, len(diagonal), groups.shape[1], device=diagonal.device)
    group_order = groups.amax(dim=1).argsort(descending=True, stable=True)
    return (columns + starts[:, None])[group_order].flatten()


def factorize_hessian(
    hessian: Float32[Tensor, "cols cols"], order: Int64[Tensor, " cols"], *, damp_percent: float
) -> HessianFactor:
    """Damps a Hessian and factorizes its inverse.

    The factor of the inverse is the inverse of the factor in reverse order, so the inverse itself
    is never computed.

    Args:
        hessian: sum of x xᵀ, undamped; unit: activation squared.
        order: order in which the columns are solved.
        damp_percent: fraction of mean(diag H) added to the diagonal.
    Returns:
        upper triangular U with Uᵀ U = H⁻¹.
    Raises:
        NotPositiveDefinite: the factorization fails even with 100 times the damping.
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
    """Factorizes the diagonal only, as a fallback: every weight is rounded to nearest.

    Raises:
        NotPositiveDefinite: the diagonal has no Cholesky factor either.
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
    """Rounds one linear layer, moving each column's error to the columns not yet rounded.

    The grid of a group is searched when the solver reaches it. A column is weighted by the cost of
    an error in it after compensation by all later columns, 1 / U_jj².

    Args:
        weight: fp32 weight; rows are outputs, columns are inputs in natural order.
        factor: factor of the Hessian; its order keeps the columns of a group together.
        kernel: kernel of the weight's device.
        bits: 2, 3, 4 or 8.
        group_size: neighbouring columns, in natural order, that share a scale; -1 for the whole
            row. No loader needs the order of solving.
        sym: true for zero points at 2**(bits-1).
    Raises:
        NumericsProblem: a weight is so large that a scale is not finite in fp16.
    Source:
        Frantar et al., arXiv:2210.17323, algorithm 1; IST-DASLab/gptq 2d65066, gptq.py.
        Differences: the grid is fp16 from the start and searched with either sign, the order keeps
        groups together, and the columns are stored as rows.
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
        index = int(factor.order[group]) // size
        scales[:, index], zeros[:, index] = scale, zero
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
    natural_codes = torch.empty_like(codes)
    natural_codes[factor.order] = codes
    return GptqSolution(
        natural_codes.T.contiguous(),
        QuantGrid.from_float32(scales, zeros, bits=bits, group_size=size),
    )
