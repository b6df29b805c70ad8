"""The solver, slow: one column at a time, with the inverse Hessian of the columns still free.

    code   = nearest code of the first free column
    error  = that column - what the code stands for
    rest  -= error / inverse[0, 0] * inverse[0, 1:]
    inverse loses its first row and column by one step of Gaussian elimination
    loss  += error**2 / inverse[0, 0]

Float64 throughout; no Cholesky factor, no blocks, nothing shared with the package's solver.

Source: Frantar et al., arXiv:2210.17323, section 3 (the OBQ step, equations 2 and 3).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from camelpress.quantize.grid import Grid


class Answer(NamedTuple):
    """What the slow way gives; `margin` says in which rows a faster way may round apart."""

    codes: Tensor  # [rows cols], natural order
    loss: Tensor  # [rows]
    margin: Tensor  # [rows], distance of the row's nearest rounding to a tie, in steps


def damped(hessian: Tensor, damp_percent: float) -> Tensor:
    """The Hessian of the problem that is solved: unused columns filled in, diagonal raised."""
    full = hessian.double().clone()
    mean = full.diagonal().mean()
    for column in range(len(full)):
        if full[column, column] == 0:
            full[column, column] = mean
        full[column, column] += damp_percent * mean
    return full


def solve(weight: Tensor, hessian: Tensor, grid: Grid, order: Tensor) -> Answer:
    """Round a layer.

    Args:
        weight: [rows cols], natural order.
        hessian: [cols cols], damped, natural order.
        grid: scales and zero points, natural order.
        order: the columns as they are rounded.
    """
    rest = weight.double()[:, order]
    inverse = torch.linalg.inv(hessian.double()[order][:, order])
    codes = torch.empty(weight.shape, dtype=torch.uint8)
    loss = torch.zeros(len(weight), dtype=torch.float64)
    margin = torch.full((len(weight),), 0.5, dtype=torch.float64)
    for column in order.tolist():
        group = int(grid.group_of[column])
        scale, zero = grid.scales[:, group].double(), grid.zeros[:, group].double()
        place = rest[:, 0] / scale + zero
        code = place.round().clamp(0, grid.top)
        codes[:, column] = code.to(torch.uint8)
        margin = margin.minimum(_from_tie(place, grid.top))
        error = rest[:, 0] - (code - zero) * scale
        loss += error.square() / inverse[0, 0]
        rest = rest[:, 1:] - (error / inverse[0, 0])[:, None] * inverse[0, 1:]
        inverse = (inverse - inverse[:, :1] @ inverse[:1] / inverse[0, 0])[1:, 1:]
    return Answer(codes, loss, margin)


def output_error(weight: Tensor, stored: Tensor, hessian: Tensor) -> Tensor:
    """The squared output error of each row: the diagonal of E H Eᵀ."""
    error = weight.double() - stored.double()
    return (error @ hessian.double() * error).sum(dim=1)


def _from_tie(place: Tensor, top: int) -> Tensor:
    """How far from the middle between two codes; beyond the ends of the grid there is none."""
    inside = place.clamp(0, top)
    return torch.where(place == inside, 0.5 - (place - place.round()).abs(), 0.5)
