"""GPTQ solver: rounds column by column and compensates each error in the remaining columns.

The solver is pure: weight and Hessian in, codes and grid out, without model or files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float32, Float64, Int64, UInt8
from torch import Tensor

from camelpress.quantize.kernels.kernel import LAZY_BATCH_COLUMNS, GroupResult, Kernel
from camelpress.quantize.solver.damping import damped_cholesky, invert_lower
from camelpress.quantize.solver.grid import QuantGrid

FALLBACK = "nearest"


@dataclass(frozen=True)
class HessianFactor:
    """Factor of the inverse Hessian for the solver, with the damping it needed."""

    order: Int64[Tensor, " cols"]  # order in which the columns are solved
    upper: Float32[Tensor, "cols cols"]  # Cholesky factor of the inverse, in that order
    damping: Float32[Tensor, " cols"]  # amount added to the diagonal, in natural order
    damp_percent: float  # fraction of mean(diag H)
    rescue: str  # "" | "float64" | "damped" | FALLBACK


@dataclass(frozen=True)
class GptqSolution:
    """Codes in natural column order, their grid, and the error of each row."""

    codes: UInt8[Tensor, "rows cols"]
    grid: QuantGrid
    damped_error: Float64[Tensor, " rows"]  # squared output error with the damped Hessian


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
    damping = damped.damping[order.flip(0).argsort()]
    return HessianFactor(order, upper, damping, damped.damp_percent, damped.rescue)


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
    an error in it after compensation by all later columns, 1 / U_jj². The errors e of a row, each
    divided by U_jj, give its squared output error: the row of W - Q is e U, and (e U) H (e U)ᵀ is
    e eᵀ. Nothing is read back from the weight's device.

    Args:
        weight: fp32 weight; rows are outputs, columns are inputs in natural order.
        factor: factor of the Hessian; its order keeps the columns of a group together.
        kernel: kernel of the weight's device.
        bits: 2, 3, 4 or 8.
        group_size: neighbouring columns, in natural order, that share a scale; -1 for the whole
            row. No loader needs the order of solving.
        sym: true for zero points at 2**(bits-1).
    Returns:
        codes and grid; a scale is infinite if its weights are too large for fp16.
    Source:
        Frantar et al., arXiv:2210.17323, algorithm 1; IST-DASLab/gptq 2d65066, gptq.py.
        Differences: the grid is fp16 from the start and searched with either sign, the order keeps
        groups together, and the columns are stored as rows.
    """
    size = weight.shape[1] if group_size == -1 else group_size
    columns = weight.T[factor.order].contiguous()
    codes = torch.empty_like(columns, dtype=torch.uint8)
    scales, zeros = (columns.new_empty(len(weight), len(columns) // size) for _ in range(2))
    squared_error = torch.zeros_like(weight[:, 0], dtype=torch.float64)
    batches = _round_batches(columns, factor.upper, kernel, bits=bits, size=size, sym=sym)
    for batch, result in batches:
        later = slice(batch.stop, len(columns))
        columns[later].addmm_(factor.upper[batch, later].T, result.errors, alpha=-1)
        codes[batch] = result.codes
        scales[:, batch.start // size], zeros[:, batch.start // size] = result.scales, result.zeros
        squared_error += result.errors.double().square_().sum(dim=0)
    natural = codes[factor.order.argsort()].T.contiguous()
    place = (factor.order[::size] // size).argsort()
    grid = QuantGrid.from_float32(scales[:, place], zeros[:, place], bits=bits, group_size=size)
    return GptqSolution(natural, grid, squared_error)


def _round_batches(
    columns: Float32[Tensor, "cols rows"],
    upper: Float32[Tensor, "cols cols"],
    kernel: Kernel,
    *,
    bits: int,
    size: int,
    sym: bool,
) -> Iterator[tuple[slice, GroupResult]]:
    """Yields batches of columns with their results, in the order of solving.

    The caller moves the errors of a batch to the later columns before it takes the next batch.
    """
    importance = upper.diagonal().square().reciprocal()
    for start in range(0, len(columns), size):
        group = slice(start, start + size)
        if size <= LAZY_BATCH_COLUMNS:
            yield (
                group,
                kernel.round_group(
                    columns[group], upper[group, group], importance[group], bits=bits, sym=sym
                ),
            )
            continue
        scales, zeros = kernel.search_group(columns[group], importance[group], bits=bits, sym=sym)
        for first in range(start, group.stop, LAZY_BATCH_COLUMNS):
            batch = slice(first, min(first + LAZY_BATCH_COLUMNS, group.stop))
            codes, errors = kernel.round_columns(
                columns[batch], upper[batch, batch], scales, zeros, top=2**bits - 1
            )
            yield batch, GroupResult(codes, errors, scales, zeros)
