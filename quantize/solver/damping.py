"""Cholesky factors of calibration Hessians, damped because many are nearly singular."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from camelpress.core.errors import NotPositiveDefinite

DAMPING_STEPS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)  # factors of the damping, tried in order
LEAF_COLUMNS = 128  # columns of the largest triangle inverted without a split


@dataclass(frozen=True)
class DampedCholesky:
    """Cholesky factor of a damped Hessian, with the damping it needed."""

    lower: Float[Tensor, "cols cols"]  # factor with columns in the given order
    damping: Float32[Tensor, " cols"]  # amount added to the diagonal, in the same order
    damp_percent: float  # fraction of mean(diag H)
    rescue: str  # "" | "float64" | "damped"


def damped_cholesky(
    hessian: Float32[Tensor, "cols cols"], order: Int64[Tensor, " cols"], *, damp_percent: float
) -> DampedCholesky:
    """Damps a Hessian and factorizes it.

    A column without any activation gets the mean of the diagonal, which decouples it. If fp32
    fails, fp64 is tried with the same damping, and only then is the damping raised.

    Args:
        hessian: sum of x xᵀ, undamped; unit: activation squared.
        order: order of rows and columns in the factor.
        damp_percent: fraction of mean(diag H) added to the diagonal.
    Raises:
        NotPositiveDefinite: the factorization fails even with 100 times the damping.
    """
    mean = hessian.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    for step in DAMPING_STEPS:
        damp = min(1.0, damp_percent * step)
        for dtype in (torch.float32, torch.float64):
            damped = hessian[order[:, None], order].to(dtype)
            diagonal = damped.diagonal()
            undamped = diagonal.clone()
            diagonal.copy_(torch.where(diagonal == 0, mean.to(dtype), diagonal))
            diagonal += damp * mean.to(dtype)
            lower, info = torch.linalg.cholesky_ex(damped)
            if bool((info == 0) & lower.isfinite().all()):  # the only wait for the device
                rescue = "damped" if step > 1 else "float64" if dtype == torch.float64 else ""
                return DampedCholesky(lower, (diagonal - undamped).to(torch.float32), damp, rescue)
    raise NotPositiveDefinite(
        f"a Hessian of {len(hessian)} columns has no Cholesky factor even with damping {damp}",
        next_step="check the calibration text for repeated or empty samples, or use more of it",
    )


def invert_lower(lower: Float[Tensor, "n n"]) -> None:
    """Inverts a lower triangular matrix in place.

    The recursion by halves makes nearly all of the work matrix products:

        [A 0]⁻¹   [   A⁻¹      0 ]
        [B C]   = [-C⁻¹ B A⁻¹ C⁻¹]
    """
    size = len(lower)
    if size <= LEAF_COLUMNS:
        identity = torch.eye(size, dtype=lower.dtype, device=lower.device)
        lower.copy_(torch.linalg.solve_triangular(lower, identity, upper=False))
        return
    half = size // 2
    first_half, last_half, below = lower[:half, :half], lower[half:, half:], lower[half:, :half]
    invert_lower(first_half)
    invert_lower(last_half)
    below.copy_(last_half @ (below @ first_half).neg_())
