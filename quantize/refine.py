"""What the solver cannot do, because it never looks back: a descent from where it ended.

GPTQ rounds each column once. Afterwards a better code for a column, or a better scale for a group,
is one that lowers the same squared output error while everything else stays; a few sweeps over all
groups find most of them. Scales are refitted by least squares, for the codes as they are.
"""

from __future__ import annotations

import torch
from jaxtyping import Float32
from torch import Tensor

from camelpress.quantize.gptq import Factor, Solved
from camelpress.quantize.grid import Grid, values
from camelpress.quantize.kernel import COLUMNS, Kernel


def refine(
    weight: Float32[Tensor, "rows cols"],
    factor: Factor,
    solved: Solved,
    kernel: Kernel,
    *,
    sweeps: int,
) -> Solved:
    """Lower the squared output error by coordinate descent on scales and codes.

    Args:
        weight: what the codes should stand for, natural order.
        factor: its damped Hessian is what the error is measured with.
        solved: where to begin; zero points stay.
        kernel: of the weight's device.
        sweeps: over all groups.
    Source:
        Coordinate descent on codes: Behdin et al., arXiv:2309.01885, section 3. The scales and
        the order in which both take turns are ours.
    """
    size = solved.grid.group_size
    run = max(size, COLUMNS // size * size)
    hessian = factor.hessian
    error = values(solved.codes, solved.grid) - weight
    parts = [
        (
            slice(start, min(start + run, weight.shape[1])),
            slice(start // size, min(start + run, weight.shape[1]) // size),
        )
        for start in range(0, weight.shape[1], run)
    ]
    state = [
        (
            solved.codes[:, columns].to(torch.float32).contiguous(),
            solved.grid.scales[:, groups].to(torch.float32).contiguous(),
            solved.grid.zeros[:, groups].to(torch.float32).contiguous(),
        )
        for columns, groups in parts
    ]
    for _ in range(sweeps):
        for (columns, _groups), (codes, scales, zeros) in zip(parts, state, strict=True):
            here = error[:, columns].contiguous()
            kernel.refine_columns(
                error @ hessian[:, columns],
                hessian[columns, columns].contiguous(),
                codes,
                here,
                scales,
                zeros,
                top=solved.grid.top,
            )
            error[:, columns] = here
    codes, scales, zeros = (torch.cat(each, dim=1) for each in zip(*state, strict=True))
    grid = Grid.of(scales, zeros, bits=solved.grid.bits, group_size=size)
    return Solved(codes.to(torch.uint8), grid)
