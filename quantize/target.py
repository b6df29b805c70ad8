"""What a layer is rounded towards: not its own weight, but the outputs of the 16-bit model.

By the time a layer is reached, its inputs x are no longer the x16 of the 16-bit model. The weight
that comes nearest to the 16-bit outputs on the inputs as they are is a least-squares solution away,
and rounding that one makes up, layer by layer, for what all before it did.

    W* = W + strength (V - W)

    V = W + W sum (x16 - x) xᵀ H⁻¹             of a layer that reads the residual stream
    V = (sum (r16 - r) xᵀ + W damping) H⁻¹     of one that writes to it: r16 is the 16-bit model's
                                               stream after the layer, r the quantized one before

with H = sum x xᵀ + damping; where there is no evidence, V stays at W.
"""

from __future__ import annotations

from jaxtyping import Float32
from torch import Tensor

from camelpress.quantize.gptq import Factor


def reader_step(
    cross: Float32[Tensor, "cols cols"], factor: Factor
) -> Float32[Tensor, "cols cols"]:
    """What the weights of layers that read are multiplied with to give V - W.

    Args:
        cross: sum of (x16 - x) xᵀ.
        factor: of the Hessian.
    Source:
        Asymmetric calibration: Li et al., arXiv:2504.02692 (GPTAQ). Ours differs: the correction
        is made before solving and in closed form.
    """
    return _over_hessian(cross, factor)


def writer_step(
    weight: Float32[Tensor, "rows cols"], cross: Float32[Tensor, "rows cols"], factor: Factor
) -> Float32[Tensor, "rows cols"]:
    """V - W for some rows of a layer that writes.

    Args:
        weight: the 16-bit one.
        cross: sum of (r16 - r) xᵀ, of the same rows.
        factor: of the Hessian.
    Source:
        As `reader_step`; that the target is the residual stream, with all that it lost before, is
        ours.
    """
    return _over_hessian(cross + weight * factor.damping, factor) - weight


def _over_hessian(
    matrix: Float32[Tensor, "rows cols"], factor: Factor
) -> Float32[Tensor, "rows cols"]:
    quotient = matrix.clone()
    quotient[:, factor.order] = matrix[:, factor.order] @ factor.upper.T @ factor.upper
    return quotient
