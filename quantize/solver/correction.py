"""Corrects a weight before rounding, towards the outputs of the 16-bit model.

Quantizing the earlier layers changes a layer's inputs from x16 of the 16-bit model to x. The weight
V with outputs nearest to the 16-bit ones on inputs x is the solution of a least-squares problem.
Rounding V, or a weight on the way to it, compensates layer by layer for the earlier errors.

    W* = W + strength (V - W)

    V = W + W sum (x16 - x) xᵀ H⁻¹             for a layer that reads the residual stream
    V = (sum (r16 - r) xᵀ + W damping) H⁻¹     for a layer that writes to it: r16 is the stream
                                               after it in the 16-bit model, r the stream before
                                               it in the quantized model

with H = sum x xᵀ + damping, and all sums over the same tokens. For unused inputs, V equals W.
"""

from __future__ import annotations

import torch
from jaxtyping import Float32
from torch import Tensor

from camelpress.inference.model.matmul_precision import exact_products
from camelpress.quantize.solver.damping import DampedCholesky, damped_cholesky
from camelpress.quantize.solver.hessian import HessianAccumulator

CORRECTION_ROWS = 1024  # rows of the weight corrected at a time


@exact_products()
def correct_weight(
    weight: Float32[Tensor, "rows cols"],
    moments: HessianAccumulator,
    *,
    strength: float,
    damp_percent: float,
    writes: bool,
) -> None:
    """Moves a weight in place towards the least-squares weight for the 16-bit outputs.

    Args:
        weight: weight of all layers that share the input, fp32.
        moments: Hessian of that input and its cross moment with the deviations.
        strength: distance to move; 0 stays at W, 1 reaches V.
        damp_percent: fraction of mean(diag H) added to the diagonal.
        writes: true if the layer's output is added to the residual stream.
    Raises:
        NotPositiveDefinite: the Hessian has no Cholesky factor at any damping tried.
    Source:
        Asymmetric calibration: Li et al., arXiv:2504.02692 (GPTAQ). Differences: the correction
        precedes the solver and has a closed form, and a layer that writes is fitted to the residual
        stream with all errors accumulated in it.
    """
    hessian = moments.full_hessian()
    order = torch.arange(len(hessian), device=hessian.device)
    damped = damped_cholesky(hessian, order, damp_percent=damp_percent)
    if writes:
        solution = _times_inverse(moments.cross_moment + weight * damped.damping, damped)
        weight.lerp_(solution, strength)
        return
    step = _times_inverse(moments.cross_moment, damped)
    for rows in weight.split(CORRECTION_ROWS):
        rows += strength * (rows @ step)


def _times_inverse(
    matrix: Float32[Tensor, "rows cols"], damped: DampedCholesky
) -> Float32[Tensor, "rows cols"]:
    """Returns a matrix times the inverse of the damped Hessian."""
    solution = torch.cholesky_solve(matrix.T.to(damped.lower.dtype), damped.lower)
    return solution.T.to(torch.float32)
