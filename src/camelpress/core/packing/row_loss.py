"""Relative loss of a matrix stored in fewer bits, row by row.

All rows count equally, even small ones: the next layer may multiply a small output by a large
number.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from camelpress.core.checkpoint.portable_config import dtype_name
from camelpress.core.errors import NumericsProblem

COMPARED_WEIGHTS = 2**22  # weights compared at a time
MAX_ROW_LOSS = 0.01  # mean row loss in a 16-bit type; rounding alone causes less than 1e-5


def require_row_loss(name: str, loss: float, dtype: torch.dtype) -> None:
    """Checks that a tensor survives its conversion to a 16-bit type.

    Args:
        name: Description of the tensor, for messages.
        loss: Mean row loss, from `mean_row_loss`.
        dtype: 16-bit type.
    Raises:
        NumericsProblem: The loss is larger than that of rounding.
    """
    if loss > MAX_ROW_LOSS:
        raise NumericsProblem(
            f"{name} loses {loss:.0%} in {dtype_name(dtype)}, whose numbers are too coarse for it",
            next_step="multiply it in the checkpoint by a power of two, and what it feeds by the "
            "inverse",
        )


def mean_row_loss(error: Float[Tensor, " rows"], energy: Float[Tensor, " rows"]) -> float:
    """Returns the mean over rows of error / energy, clamped to 1; 0 for a row of zeros."""
    shares = error / energy.where(energy > 0, torch.ones_like(energy))
    return float(shares.clamp(min=0, max=1).double().mean()) if len(shares) else 0.0


def weight_loss(exact: Tensor, stored: Tensor) -> float:
    """Returns the mean over rows of squared error / squared weight, clamped to 1.

    Args:
        exact: Matrix [rows cols], or a vector as one row.
        stored: Stored values of the same shape.
    """
    exact, stored = torch.atleast_2d(exact), torch.atleast_2d(stored)
    step = max(1, COMPARED_WEIGHTS // max(1, exact.shape[-1]))
    parts = zip(exact.split(step), stored.split(step), strict=True)
    sums = [row_error_energy(*pair) for pair in parts]
    return mean_row_loss(*(torch.cat(column).flatten() for column in zip(*sums, strict=True)))


def row_error_energy(exact: Tensor, stored: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the squared error and the squared weight of each row, in fp64."""
    error = stored.double() - exact.double()
    return error.square().sum(dim=-1), exact.double().square().sum(dim=-1)
