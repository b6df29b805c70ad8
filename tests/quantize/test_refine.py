"""Refinement lowers the error it is meant to lower, and leaves alone what it must."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import solver_oracle
from camelpress.quantize import kernel_cpu, kernel_plain
from camelpress.quantize.gptq import Factor, Solved, activation_order, factorize, solve
from camelpress.quantize.grid import nearest, search, values
from camelpress.quantize.kernel import COLUMNS, SMALLEST_SCALE, Kernel
from camelpress.quantize.refine import refine

DAMP = 0.01
CLEAR = 1e-3  # of a step
FEW = settings(max_examples=30, derandomize=True, deadline=None, database=None)
KERNELS: tuple[Kernel, ...] = (kernel_cpu, kernel_plain)


class Case(NamedTuple):
    """A layer, and codes to begin with."""

    weight: Tensor
    factor: Factor
    solved: Solved
    kernel: Kernel = kernel_cpu

    def refined(self, *, sweeps: int) -> Solved:
        return refine(self.weight, self.factor, self.solved, self.kernel, sweeps=sweeps)

    def slowly(self, *, sweeps: int) -> solver_oracle.Answer:
        grid = self.solved.grid
        return solver_oracle.refine(
            self.weight,
            self.factor.hessian.double(),
            self.solved.codes,
            grid.scales,
            grid.zeros,
            bits=grid.bits,
            sweeps=sweeps,
        )

    def error(self, solved: Solved) -> Tensor:
        """What refinement lowers, row by row."""
        stored = values(solved.codes, solved.grid)
        return solver_oracle.output_error(self.weight, stored, self.factor.hessian)


def case(
    cols: int, *, rows: int = 6, bits: int = 4, group_size: int = -1, sym: bool = True,
    seed: int = 0, solver: bool = True, kernel: Kernel = kernel_cpu,
) -> Case:  # fmt: skip
    """Inputs that share a few directions; codes of the solver, or rounded to nearest."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(4 * cols, 4, generator=generator) @ torch.randn(
        4, cols, generator=generator
    )
    inputs = shared + 0.3 * torch.randn(4 * cols, cols, generator=generator)
    weight = torch.randn(rows, cols, generator=generator)
    return around(weight, inputs, bits, group_size, sym, solver=solver, kernel=kernel)


def around(
    weight: Tensor, inputs: Tensor, bits: int, group_size: int, sym: bool,
    *, solver: bool = True, kernel: Kernel = kernel_cpu,
) -> Case:  # fmt: skip
    hessian = inputs.T @ inputs
    order = activation_order(hessian.diagonal(), group_size=group_size)
    factor = factorize(hessian, order, damp_percent=DAMP)
    if solver:
        solved = solve(weight, factor, kernel, bits=bits, group_size=group_size, sym=sym)
    else:
        grid = search(
            weight, kernel, importance=hessian.diagonal(), bits=bits, group_size=group_size, sym=sym
        )
        solved = Solved(nearest(weight, grid), grid)
    return Case(weight, factor, solved, kernel)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    return case(
        8 * draw(st.integers(1, 3)),
        rows=draw(st.integers(1, 8)),
        bits=draw(st.sampled_from([2, 3, 4, 8])),
        group_size=draw(st.sampled_from([-1, 4, 8])),
        sym=draw(st.booleans()),
        seed=draw(st.integers(0, 10_000)),
        solver=draw(st.booleans()),
        kernel=draw(st.sampled_from(KERNELS)),
    )


@FEW
@given(cases(), st.integers(1, 2))
def test_it_does_what_the_oracle_does_wherever_no_decision_was_near_a_tie(
    drawn: Case, sweeps: int
) -> None:
    slow = drawn.slowly(sweeps=sweeps)
    clear = slow.margin > CLEAR
    assume(bool(clear.any()))
    refined = drawn.refined(sweeps=sweeps)
    assert torch.equal(refined.codes[clear], slow.codes[clear])
    assert torch.equal(refined.grid.scales[clear].double(), slow.scales[clear])


@pytest.mark.parametrize("group_size", [32, 96, -1])
@pytest.mark.parametrize("cols", [COLUMNS + 64, 3 * COLUMNS])
def test_what_changes_in_one_run_of_columns_is_known_in_the_next(
    cols: int, group_size: int
) -> None:
    drawn = case(cols, rows=8, bits=3, group_size=group_size)
    slow = drawn.slowly(sweeps=1)
    clear = slow.margin > 1e-4
    assert float(clear.float().mean()) >= 0.5
    assert torch.equal(drawn.refined(sweeps=1).codes[clear], slow.codes[clear])


@FEW
@given(cases(), st.integers(0, 3))
def test_the_damped_squared_error_never_rises(drawn: Case, sweeps: int) -> None:
    before, after = drawn.error(drawn.solved), drawn.error(drawn.refined(sweeps=sweeps))
    energy = solver_oracle.output_error(drawn.weight, drawn.weight * 0, drawn.factor.hessian)
    assert bool((after <= before * (1 + 1e-5) + 1e-9 * energy).all())


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("sym", [True, False])
def test_the_damped_squared_error_usually_falls(bits: int, sym: bool) -> None:
    drawn = case(64, rows=32, bits=bits, group_size=32, sym=sym)
    errors = [drawn.error(drawn.refined(sweeps=sweeps)) for sweeps in range(3)]
    assert float((errors[1] < errors[0]).float().mean()) > 0.9
    assert float(errors[1].sum()) < 0.98 * float(errors[0].sum())
    assert float(errors[2].sum()) <= float(errors[1].sum())


@FEW
@given(cases())
def test_scales_stay_fp16_numbers_and_zero_points_stay(drawn: Case) -> None:
    before, after = drawn.solved.grid, drawn.refined(sweeps=2).grid
    assert after.scales.dtype == torch.float16
    assert bool(after.scales.isfinite().all())
    assert float(after.scales.abs().min()) >= SMALLEST_SCALE
    assert torch.equal(after.zeros, before.zeros)
    assert (after.bits, after.group_size) == (before.bits, before.group_size)


@FEW
@given(cases())
def test_no_sweep_is_no_change(drawn: Case) -> None:
    refined = drawn.refined(sweeps=0)
    assert torch.equal(refined.codes, drawn.solved.codes)
    assert torch.equal(refined.grid.scales, drawn.solved.grid.scales)


@FEW
@given(cases())
def test_weights_on_the_grid_stay(drawn: Case) -> None:
    stored = values(drawn.solved.codes, drawn.solved.grid)
    refined = drawn._replace(weight=stored).refined(sweeps=2)
    assert torch.equal(values(refined.codes, refined.grid), stored)


def test_the_inputs_are_left_as_they_were() -> None:
    drawn = case(32, group_size=8)
    grid = drawn.solved.grid
    tensors = (drawn.weight, drawn.factor.hessian, drawn.solved.codes, grid.scales, grid.zeros)
    before = [tensor.clone() for tensor in tensors]
    drawn.refined(sweeps=2)
    assert all(map(torch.equal, before, tensors))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("sym", [True, False])
def test_a_scale_that_no_code_needs_stays(sym: bool, kernel: Kernel) -> None:
    drawn = case(16, group_size=8, sym=sym, kernel=kernel)
    drawn.solved.codes[:, 8:] = drawn.solved.grid.zeros[:, 1:]
    weight = values(drawn.solved.codes, drawn.solved.grid)  # zero in the second group
    refined = drawn._replace(weight=weight).refined(sweeps=1)
    assert torch.equal(refined.grid.scales[:, 1], drawn.solved.grid.scales[:, 1])
    assert torch.equal(refined.codes, drawn.solved.codes)


@pytest.mark.parametrize("sizes", [(-3, 3), (3, -3)])
def test_weights_of_very_different_sizes_are_refined_as_the_oracle_does(
    sizes: tuple[int, int],
) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 32, generator=generator) * torch.logspace(-2, 2, 32)
    weight = torch.randn(8, 32, generator=generator) * torch.logspace(*sizes, 8)[:, None]
    drawn = around(weight, inputs, 4, 8, True)
    slow = drawn.slowly(sweeps=1)
    clear = slow.margin > CLEAR
    assert float(clear.float().mean()) >= 0.5
    assert torch.equal(drawn.refined(sweeps=1).codes[clear], slow.codes[clear])
