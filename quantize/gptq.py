"""The GPTQ solver: round column by column, and let the columns still free make up for the error.

Pure: weight, Hessian and grid in, codes and loss out. It knows no model and no file.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor

from camelpress.core.errors import NotPositiveDefinite
from camelpress.quantize.grid import Grid

COLUMNS = 128  # solved before their error is spread over the rest in one product
DAMP_STEPS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)


@dataclass(frozen=True)
class Factor:
    """The upper Cholesky factor of the inverse Hessian, and what it took to get it."""

    upper: Float32[Tensor, "cols cols"]
    damp_percent: float
    rescue: str  # "" | "float64" | "damped"


@dataclass(frozen=True)
class Solved:
    """Codes, and the squared output error per row: summed over tokens, unit output squared."""

    codes: UInt8[Tensor, "rows cols"]
    loss: Float32[Tensor, " rows"]


def activation_order(hessian: Float32[Tensor, "cols cols"]) -> Int64[Tensor, " cols"]:
    """Columns by falling mean square of their input: the costliest are rounded first, while
    most others are still free to make up for them.
    """
    return torch.argsort(hessian.diagonal(), descending=True, stable=True)


def factorize(
    hessian: Float32[Tensor, "cols cols"], order: Int64[Tensor, " cols"], *, damp_percent: float
) -> Factor:
    """Damp and invert a Hessian whose columns are put in order.

    A column that no token ever used gets the mean of the diagonal: it is rounded on its own. If
    fp32 cannot factorize, fp64 tries with the same damping, and only then is the damping raised.

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
    ordered = hessian[order][:, order]
    diagonal = ordered.diagonal()
    mean = diagonal.mean().clamp(min=torch.finfo(torch.float32).tiny)
    ordered.diagonal()[diagonal == 0] = mean
    for step in DAMP_STEPS:
        damp = min(1.0, damp_percent * step)
        for dtype in (torch.float32, torch.float64):
            damped = ordered.to(dtype, copy=True)
            damped.diagonal().add_(damp * mean.to(dtype))
            upper = _upper_of_inverse(damped)
            if upper is not None:
                rescue = "damped" if step > 1 else "float64" if dtype == torch.float64 else ""
                return Factor(upper.to(torch.float32), damp, rescue)
    raise NotPositiveDefinite(
        f"a Hessian of {len(hessian)} columns has no Cholesky factor even with damping {damp}",
        next_step="check the calibration text for repeated or empty samples, or use more of it",
    )


def solve(
    weight: Float32[Tensor, "rows cols"],
    factor: Factor,
    grid: Grid,
    order: Int64[Tensor, " cols"],
) -> Solved:
    """Round one linear layer, moving each column's error to the columns not yet rounded.

    Args:
        weight: rows are outputs, columns are inputs, in their natural order.
        factor: of the Hessian in the order of `order`.
        grid: scales and zero points per group of neighbouring columns, in the natural order: the
            order of solving stays inside, and no loader has to know it.
        order: columns as they are solved.
    Source:
        Frantar et al., arXiv:2210.17323, algorithm 1; IST-DASLab/gptq 2d65066, gptq.py. Ours
        differs: the grid is given, in fp16 already, and the columns lie in memory as rows.
    """
    columns = weight.T[order].contiguous()
    scales = grid.scales.T.float().contiguous()
    zeros = grid.zeros.T.float().contiguous()
    groups = grid.group_of[order].tolist()
    codes = torch.empty_like(columns, dtype=torch.uint8)
    loss = torch.zeros_like(columns[0])
    diagonal = factor.upper.diagonal().tolist()
    for start in range(0, len(columns), COLUMNS):
        stop = min(start + COLUMNS, len(columns))
        errors = torch.empty_like(columns[start:stop])
        for column in range(start, stop):
            scale, zero = scales[groups[column]], zeros[groups[column]]
            code = (columns[column] / scale).round_().add_(zero).clamp_(0, grid.top)
            codes[column] = code
            error = (columns[column] - code.sub_(zero).mul_(scale)) / diagonal[column]
            columns[column + 1 : stop].addr_(
                factor.upper[column, column + 1 : stop], error, alpha=-1
            )
            errors[column - start] = error
            loss.addcmul_(error, error)
        columns[stop:].addmm_(factor.upper[start:stop, stop:].T, errors, alpha=-1)
    natural = torch.empty_like(codes)
    natural[order] = codes
    return Solved(natural.T.contiguous(), loss)


def _upper_of_inverse(hessian: Float[Tensor, "cols cols"]) -> Float[Tensor, "cols cols"] | None:
    lower, failed = torch.linalg.cholesky_ex(hessian)
    if int(failed):
        return None
    upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    if int(failed) or not bool(upper.isfinite().all()):
        return None
    return upper
