"""What a layer is rounded towards: not its own weight, but the outputs of the 16-bit model.

By the time a layer is reached, its inputs x are no longer the x16 of the 16-bit model. The weight
that comes nearest to the 16-bit outputs on the inputs as they are is a least-squares solution away,
and rounding that one makes up, layer by layer, for what all before it did.

    W* = W + strength (V - W)

    V = W + W sum (x16 - x) xᵀ H⁻¹             of a layer that reads the residual stream
    V = (sum (r16 - r) xᵀ + W damping) H⁻¹     of one that writes to it: r16 is the 16-bit model's
                                               stream after the layer, r the quantized one before

with H = sum x xᵀ + damping and all sums over the same tokens. Where there is no evidence, V stays
at W.
"""

from __future__ import annotations

import torch
from jaxtyping import Float32
from torch import Tensor

from camelpress.quantize.solver.damping import DampedCholesky, damped_cholesky
from camelpress.quantize.solver.hessian import HessianAccumulator

CORRECTION_ROWS = 1024  # of the weight that are moved at a time


def correct_weight(
    weight: Float32[Tensor, "rows cols"],
    moments: HessianAccumulator,
    *,
    strength: float,
    damp_percent: float,
    writes: bool,
) -> None:
    """Move a weight, in place, towards the one that gives what the 16-bit model gives.

    Args:
        weight: of all layers that share the input.
        moments: of that input and of what the 16-bit model has more than the quantized one.
        strength: 0 stays at W, 1 goes all the way to V.
        damp_percent: fraction of mean(diag H) added to the diagonal.
        writes: whether the layer's output is added to the residual stream.
    Raises:
        NotPositiveDefinite: the Hessian has no Cholesky factor however much it is damped.
    Source:
        Asymmetric calibration: Li et al., arXiv:2504.02692 (GPTAQ). Ours differs: the correction
        is made before solving and in closed form, and a layer that writes is aimed at the residual
        stream, with all that it lost before.
    """
    hessian = moments.full_hessian()
    natural = torch.arange(len(hessian), device=hessian.device)
    damped = damped_cholesky(hessian, natural, damp_percent=damp_percent)
    if writes:
        wanted = _over_hessian(moments.cross_moment + weight * damped.damping, damped)
        weight.lerp_(wanted, strength)
        return
    step = _over_hessian(moments.cross_moment, damped)
    for rows in weight.split(CORRECTION_ROWS):
        rows += strength * (rows @ step)


def _over_hessian(
    matrix: Float32[Tensor, "rows cols"], damped: DampedCholesky
) -> Float32[Tensor, "rows cols"]:
    solution = torch.cholesky_solve(matrix.T.to(damped.lower.dtype), damped.lower)
    return solution.T.to(torch.float32)
