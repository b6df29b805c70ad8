"""Loss of a matrix that is stored in fewer bits, in shares of what it was, row by row.

Every row counts alike, however small it is: the next layer may multiply a small output by a large
number, and what vanishes here is missing there.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from camelpress.core.checkpoint.portable_config import dtype_name
from camelpress.core.errors import NumericsProblem

COMPARED_WEIGHTS = 2**22  # weights that are compared in one go
MAX_ROW_LOSS = 0.01  # mean loss of a row in a 16-bit type; rounding alone costs less than 1e-5


def require_row_loss(what: str, loss: float, dtype: torch.dtype) -> None:
    """Checks that a tensor does not vanish in a 16-bit type.

    Raises:
        NumericsProblem: it loses more than rounding does.
    """
    if loss > MAX_ROW_LOSS:
        raise NumericsProblem(
            f"{what} loses {loss:.0%} in {dtype_name(dtype)}, whose numbers are too coarse for it",
            next_step="multiply it in the checkpoint by a power of two, and what it feeds by the "
            "inverse",
        )


def mean_row_loss(error: Float[Tensor, " rows"], energy: Float[Tensor, " rows"]) -> float:
    """Returns the mean over rows of error over energy, each at most 1; 0 for a row of zeros."""
    shares = error / energy.where(energy > 0, torch.ones_like(energy))
    return float(shares.clamp(min=0, max=1).double().mean()) if len(shares) else 0.0


def weight_loss(exact: Tensor, stored: Tensor) -> float:
    """Returns the mean over rows of squared error over squared weight, each at most 1.

    Args:
        exact: matrix, or vector, which is taken for one row.
        stored: values that take its place.
    """
    exact, stored = torch.atleast_2d(exact), torch.atleast_2d(stored)
    step = max(1, COMPARED_WEIGHTS // max(1, exact.shape[-1]))
    parts = zip(exact.split(step), stored.split(step), strict=True)
    sums = [row_error_energy(one, other) for one, other in parts]
    return mean_row_loss(*(torch.cat(each).flatten() for each in zip(*sums, strict=True)))


def row_error_energy(exact: Tensor, stored: Tensor) -> tuple[Tensor, Tensor]:
    """Returns squared error and squared weight of each row, in fp64."""
    error = stored.double() - exact.double()
    return error.square().sum(dim=-1), exact.double().square().sum(dim=-1)
