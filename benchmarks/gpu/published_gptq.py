"""GPTQ as published, without the changes of this package: the baseline of the solver."""

from __future__ import annotations

import torch
from jaxtyping import Float32
from torch import Tensor

BLOCK_COLUMNS = 128  # columns of a lazy batch, as in the paper
DAMP = 0.01  # fraction of mean(diag H) added to the diagonal, as in the paper


def published_gptq(
    weight: Float32[Tensor, "rows cols"],
    hessian: Float32[Tensor, "cols cols"],
    *,
    bits: int,
    group_size: int,
) -> Float32[Tensor, "rows cols"]:
    """Returns the dequantized weights of algorithm 1, one column at a time.

    The columns keep their order. A group gets the grid that spans its largest weight when the loop
    reaches it. The group size is a multiple of the block or divides it.

    Source:
        Frantar et al., arXiv:2210.17323, algorithm 1 (Cholesky reformulation, lazy batches).
    """
    cols = weight.shape[1]
    damped = hessian + DAMP * hessian.diagonal().mean() * torch.eye(cols, device=weight.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    upper = torch.linalg.cholesky(inverse, upper=True)
    rest, quantized = weight.clone(), torch.empty_like(weight)
    for start in range(0, cols, BLOCK_COLUMNS):
        stop = min(start + BLOCK_COLUMNS, cols)
        errors = torch.empty_like(rest[:, start:stop])
        for column in range(start, stop):
            if column % group_size == 0:
                group = rest[:, column : column + group_size]
                scale = (2 / (2**bits - 1) * group.abs().amax(dim=1)).clamp(min=1e-10)
            value = rest[:, column]
            code = (value / scale).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
            quantized[:, column] = code * scale
            error = (value - quantized[:, column]) / upper[column, column]
            rest[:, column:stop].addr_(error, upper[column, column:stop], alpha=-1)
            errors[:, column - start] = error
        rest[:, stop:].addmm_(errors, upper[start:stop, stop:], alpha=-1)
    return quantized
