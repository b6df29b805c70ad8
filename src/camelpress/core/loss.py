"""Loss of a matrix that is stored in fewer bits, in shares of what it was, row by row.

Every row counts alike, however small it is: the next layer may multiply a small output by a large
number, and what vanishes here is missing there.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

AT_A_TIME = 2**22  # weights that are compared in one go


def mean_loss(error: Float[Tensor, " rows"], energy: Float[Tensor, " rows"]) -> float:
    """Returns the mean over rows of error over energy, each at most 1; 0 for a row of zeros."""
    shares = error / energy.where(energy > 0, torch.ones_like(energy))
    return float(shares.clamp(max=1).double().mean()) if len(shares) else 0.0


def weight_loss(exact: Tensor, stored: Tensor) -> float:
    """Returns the mean over rows of squared error over squared weight, each at most 1.

    Args:
        exact: matrix, or vector, which is taken for one row.
        stored: values that take its place.
    """
    exact, stored = torch.atleast_2d(exact), torch.atleast_2d(stored)
    step = max(1, AT_A_TIME // max(1, exact.shape[-1]))
    error, energy = [], []
    for one, other in zip(exact.split(step), stored.split(step), strict=True):
        energy.append(one.double().square().sum(dim=-1))
        error.append((other.double() - one.double()).square().sum(dim=-1))
    return mean_loss(torch.cat(error).flatten(), torch.cat(energy).flatten()) if error else 0.0
