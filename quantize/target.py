"""What a layer is rounded towards: not its own weight, but the outputs of the 16-bit model.

By the time a layer is reached, its inputs are no longer those of the 16-bit model. The weight that
comes nearest to the 16-bit outputs on the inputs as they are is a least-squares solution away, and
rounding that one makes up, layer by layer, for what all before it did.

    W* = W + strength * D H⁻¹,   H = sum x xᵀ, damped

    D = W sum (x16 - x) xᵀ                 a layer that reads the residual stream
    D = sum (r16 - r) xᵀ - W sum x xᵀ      one that writes to it: r16 is the 16-bit model's stream
                                           after the layer, r that of the quantized one before it
"""

from __future__ import annotations

from jaxtyping import Float32
from torch import Tensor

from camelpress.quantize.gptq import Factor


def aimed(
    weight: Float32[Tensor, "rows cols"],
    cross: Float32[Tensor, "wanted cols"],
    hessian: Float32[Tensor, "cols cols"],
    factor: Factor,
    *,
    writes: bool,
    strength: float,
) -> Float32[Tensor, "rows cols"]:
    """The weight to round.

    Args:
        weight: the 16-bit one.
        cross: sum of d xᵀ, with d = x16 - x for a layer that reads, r16 - r for one that writes.
        hessian: sum of x xᵀ, undamped.
        factor: of the Hessian.
        writes: whether the layer's output is added to the residual stream.
        strength: 0 keeps the weight, 1 goes all the way.
    Source:
        Asymmetric calibration: Li et al., arXiv:2504.02692 (GPTAQ). Ours differs: the correction
        is made before solving and in closed form, against the residual stream where there is one.
    """
    missing = cross - weight @ hessian if writes else weight @ cross
    step = missing[:, factor.order] @ factor.upper.T @ factor.upper
    target = weight.clone()
    target[:, factor.order] += strength * step
    return target
