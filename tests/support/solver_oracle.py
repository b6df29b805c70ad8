"""The solver, slow: one column at a time, with the inverse Hessian of the columns still free.

    grid   = when a group is reached, of all that are tried the one that rounds its columns best
    code   = nearest code of the first free column
    error  = that column - what the code stands for
    rest  -= error / inverse[0, 0] * inverse[0, 1:]
    inverse loses its first row and column by one step of Gaussian elimination

Float64 throughout; no Cholesky factor, no blocks, nothing shared with the package's solver.

Source: Frantar et al., arXiv:2210.17323, section 3 (the OBQ step, equations 2 and 3).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SMALLEST = 2.0**-24
SHRINK = [step / 40 for step in range(40, 19, -1)]
DOUBT = 2e-6  # of a scale that is computed in fp32


class Answer(NamedTuple):
    """What the slow way gives; `margin` says in which rows a faster way may decide otherwise."""

    codes: Tensor  # [rows cols], natural order
    scales: Tensor  # [rows groups]
    zeros: Tensor  # [rows groups]
    margin: Tensor  # [rows], how clear the row's least clear decision was, 0.5 at best


class Choice(NamedTuple):
    """The grid of one group."""

    scale: Tensor  # [rows]
    zero: Tensor  # [rows]
    margin: Tensor  # [rows]


def damped(hessian: Tensor, damp_percent: float) -> Tensor:
    """The Hessian of the problem that is solved: unused columns filled in, diagonal raised."""
    full = hessian.double().clone()
    mean = full.diagonal().mean()
    for column in range(len(full)):
        if full[column, column] == 0:
            full[column, column] = mean
        full[column, column] += damp_percent * mean
    return full


def solve(
    weight: Tensor, hessian: Tensor, order: Tensor, *, bits: int, group_size: int, sym: bool
) -> Answer:
    """Round a layer.

    Args:
        weight: [rows cols], natural order.
        hessian: [cols cols], damped, natural order.
        order: the columns as they are rounded, those of a group one after the other.
        bits: of a code.
        group_size: columns that share a scale; -1 for all.
        sym: zero in the middle.
    """
    rows, cols = weight.shape
    size = cols if group_size == -1 else group_size
    rest = weight.double()[:, order]
    inverse = torch.linalg.inv(hessian.double()[order][:, order])
    codes = torch.empty(rows, cols, dtype=torch.uint8)
    scales, zeros = (torch.empty(rows, cols // size, dtype=torch.float64) for _ in range(2))
    margin = torch.full((rows,), 0.5, dtype=torch.float64)
    for place, column in enumerate(order.tolist()):
        group = column // size
        if place % size == 0:
            found = best_grid(rest[:, :size], _costs(inverse, size), bits=bits, sym=sym)
            scales[:, group], zeros[:, group] = found.scale, found.zero
            margin = margin.minimum(found.margin)
        scale, zero = scales[:, group], zeros[:, group]
        wanted = rest[:, 0] / scale + zero
        code = wanted.round().clamp(0, 2**bits - 1)
        codes[:, column] = code.to(torch.uint8)
        margin = margin.minimum(from_tie(wanted, 2**bits - 1))
        error = rest[:, 0] - (code - zero) * scale
        rest = rest[:, 1:] - (error / inverse[0, 0])[:, None] * inverse[0, 1:]
        inverse = _without_first(inverse)
    return Answer(codes, scales, zeros, margin)


def best_grid(columns: Tensor, cost: Tensor, *, bits: int, sym: bool) -> Choice:
    """Of all grids that are tried, the first that rounds some columns at the least cost.

    Args:
        columns: [rows size].
        cost: [size], of a squared error in each.
        bits: of a code.
        sym: zero in the middle.
    """
    tried = list(_grids(columns.double(), 2**bits - 1, sym))
    losses = [loss(columns, cost, each.scale, each.zero, 2**bits - 1) for each in tried]
    rows = range(len(columns))
    best = [min(range(len(tried)), key=lambda number: losses[number][row]) for row in rows]
    scale = torch.stack([tried[best[row]].scale[row] for row in rows])
    zero = torch.stack([tried[best[row]].zero[row] for row in rows])
    clear = torch.stack([tried[best[row]].margin[row] for row in rows])
    least = torch.stack([losses[best[row]][row] for row in rows])
    for number, each in enumerate(tried):
        same = (each.scale == scale) & (each.zero == zero)
        same |= (each.scale == -scale) & (losses[number] == least)  # a mirror image: a tie for all
        behind = (losses[number] - least) / losses[number].clamp(min=1e-300)
        clear = torch.where(same | (least == 0), clear, clear.minimum(behind))
    return Choice(scale, zero, clear)


def loss(columns: Tensor, cost: Tensor, scale: Tensor, zero: Tensor, top: int) -> Tensor:
    """[rows], the cost of rounding some columns to nearest on a grid."""
    scale, zero = scale.double()[:, None], zero.double()[:, None]
    codes = (columns.double() / scale + zero).round().clamp(0, top)
    return (((codes - zero) * scale - columns).square() * cost.double()).sum(dim=1)


def output_error(weight: Tensor, stored: Tensor, hessian: Tensor) -> Tensor:
    """The squared output error of each row: the diagonal of E H Eᵀ."""
    error = weight.double() - stored.double()
    return (error @ hessian.double() * error).sum(dim=1)


def half(values: Tensor) -> Tensor:
    """The nearest fp16 numbers, none smaller than the smallest that is normal."""
    sign = torch.where(values < 0, -1.0, 1.0).double()
    rounded = values.abs().clamp(min=SMALLEST).numpy().astype(np.float16)
    return sign * torch.from_numpy(rounded.astype(np.float64))


def from_tie(place: Tensor, top: int) -> Tensor:
    """How far from the middle between two codes; beyond the ends of the grid there is none."""
    inside = place.clamp(0, top)
    return torch.where(place == inside, 0.5 - (place - place.round()).abs(), 0.5)


def _grids(columns: Tensor, top: int, sym: bool) -> Iterator[Choice]:
    """All that are tried; the margin is that of rounding a scale to fp16 and a zero point."""
    high, low = columns.amax(dim=1).clamp(min=0), columns.amin(dim=1).clamp(max=0)
    low = low if sym else low.minimum(-high / (top - 1))  # zero points begin at 1
    for shrink in SHRINK:
        if sym:
            step = 2 * high.maximum(-low) / top * shrink
            middle = torch.full_like(step, (top + 1) / 2)
            yield Choice(half(step), middle, _rounds_clearly(step, DOUBT * step))
            yield Choice(-half(step), middle, _rounds_clearly(step, DOUBT * step))
            continue
        step = (high - low) / top * shrink
        zero = -low * shrink / half(step)
        clear = _rounds_clearly(step, DOUBT * step).minimum(from_tie(zero, top))
        for offset in (0, -1, 1):
            yield Choice(half(step), (zero.round() + offset).clamp(1, top), clear)


def _rounds_clearly(scale: Tensor, doubt: Tensor) -> Tensor:
    """0.5, or 0 where a little less or a little more would round to another fp16 number."""
    return torch.where(half(scale - doubt) == half(scale + doubt), 0.5, 0.0).double()


def _costs(inverse: Tensor, count: int) -> Tensor:
    """What an error in each of the first columns costs once all later ones have made up for it."""
    costs = torch.empty(count, dtype=torch.float64)
    for place in range(count):
        costs[place] = 1 / inverse[0, 0]
        inverse = _without_first(inverse)
    return costs


def _without_first(inverse: Tensor) -> Tensor:
    return (inverse - inverse[:, :1] @ inverse[:1] / inverse[0, 0])[1:, 1:]
