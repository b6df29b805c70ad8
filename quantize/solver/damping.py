"""Cholesky factors of Hessians that calibration gives, which are often singular or nearly so."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from camelpress.core.errors import NotPositiveDefinite

DAMPING_STEPS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
LEAF_COLUMNS = 128  # columns of a triangle that is inverted without splitting it


@dataclass(frozen=True)
class DampedCholesky:
    """The Cholesky factor of a damped Hessian, and what it took to get there."""

    lower: Float[Tensor, "cols cols"]  # columns in the order asked for
    damping: Float32[Tensor, " cols"]  # what was added to the diagonal, in that order
    damp_percent: float
    rescue: str  # "" | "float64" | "damped"


def damped_cholesky(
    hessian: Float32[Tensor, "cols cols"], order: Int64[Tensor, " cols"], *, damp_percent: float
) -> DampedCholesky:
    """Damp a Hessian and factorize it.

    A column that no token ever used gets the mean of the diagonal: it is on its own. If fp32 cannot
    factorize, fp64 tries with the same damping, and only then is the damping raised.

    Args:
        hessian: sum of x xᵀ, undamped; unit: activation squared.
        order: of rows and columns in the factor.
        damp_percent: fraction of mean(diag H) added to the diagonal.
    Raises:
        NotPositiveDefinite: not even 100 times the damping helps.
    """
    mean = hessian.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    for step in DAMPING_STEPS:
        damp = min(1.0, damp_percent * step)
        for dtype in (torch.float32, torch.float64):
            damped = hessian[order[:, None], order].to(dtype)
            diagonal = damped.diagonal()
            before = diagonal.clone()
            diagonal[diagonal == 0] = mean.to(dtype)
            diagonal += damp * mean.to(dtype)
            lower, failed = torch.linalg.cholesky_ex(damped)
            if not int(failed) and bool(lower.isfinite().all()):
                rescue = "damped" if step > 1 else "float64" if dtype == torch.float64 else ""
                return DampedCholesky(lower, (diagonal - before).to(torch.float32), damp, rescue)
    raise NotPositiveDefinite(
        f"a Hessian of {len(hessian)} columns has no Cholesky factor even with damping {damp}",
        next_step="check the calibration text for repeated or empty samples, or use more of it",
    )


def invert_lower(lower: Float[Tensor, "n n"]) -> None:
    """Invert a lower triangular matrix in place.

    By halves, so that nearly all of it is products of matrices:

        [A 0]⁻¹   [   A⁻¹      0 ]
        [B C]   = [-C⁻¹ B A⁻¹ C⁻¹]
    """
    size = len(lower)
    if size <= LEAF_COLUMNS:
        one = torch.eye(size, dtype=lower.dtype, device=lower.device)
        lower.copy_(torch.linalg.solve_triangular(lower, one, upper=False))
        return
    half = size // 2
    first, last, below = lower[:half, :half], lower[half:, half:], lower[half:, :half]
    invert_lower(first)
    invert_lower(last)
    below.copy_(last @ (below @ first).neg_())
