"""The solver gives what its slow twin gives, and survives the Hessians that nobody wants."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import solver_oracle
from camelpress.core.errors import NotPositiveDefinite
from camelpress.quantize.gptq import COLUMNS, Solved, activation_order, factorize, solve
from camelpress.quantize.grid import Grid, fit, nearest, values

DAMP = 0.01
CLEAR = 1e-3  # steps; a rounding this far from a tie is beyond fp32's doubt
FEW = settings(max_examples=30, derandomize=True, deadline=None, database=None)


class Layer(NamedTuple):
    """A layer to round, and how."""

    weight: Tensor
    hessian: Tensor
    grid: Grid
    order: Tensor

    def solved(self) -> Solved:
        factor = factorize(self.hessian, self.order, damp_percent=DAMP)
        return solve(self.weight, factor, self.grid, self.order)

    def slowly(self) -> solver_oracle.Answer:
        return solver_oracle.solve(self.weight, self.damped, self.grid, self.order)

    @property
    def damped(self) -> Tensor:
        return solver_oracle.damped(self.hessian, DAMP)


def layer(
    inputs: Tensor,
    *,
    rows: int = 6,
    seed: int = 0,
    bits: int = 4,
    group_size: int = -1,
    sym: bool = True,
    act_order: bool = True,
) -> Layer:
    weight = torch.randn(rows, inputs.shape[1], generator=torch.Generator().manual_seed(seed))
    return around(weight, inputs, bits=bits, group_size=group_size, sym=sym, act_order=act_order)


def around(
    weight: Tensor,
    inputs: Tensor,
    *,
    bits: int = 4,
    group_size: int = -1,
    sym: bool = True,
    act_order: bool = True,
) -> Layer:
    hessian = inputs.T @ inputs
    order = activation_order(hessian) if act_order else torch.arange(len(hessian))
    return Layer(weight, hessian, fit(weight, bits=bits, group_size=group_size, sym=sym), order)


def assert_as_the_oracle(drawn: Layer) -> None:
    """Same codes and loss in all rows without a rounding near a tie, and most rows are so."""
    slow, solved = drawn.slowly(), drawn.solved()
    clear = slow.margin > 1e-5
    assert float(clear.float().mean()) >= 0.75
    assert torch.equal(solved.codes[clear], slow.codes[clear])
    torch.testing.assert_close(solved.loss[clear].double(), slow.loss[clear], rtol=1e-3, atol=0)


def correlated(tokens: int, cols: int, *, seed: int = 0, own: float = 0.3) -> Tensor:
    """Activations that share a few directions; `own` is what each column has to itself."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(tokens, 4, generator=generator) @ torch.randn(4, cols, generator=generator)
    return shared + own * torch.randn(tokens, cols, generator=generator)


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    group_size = draw(st.sampled_from([-1, 4, 8]))
    cols = 8 * draw(st.integers(1, 4))
    seed = draw(st.integers(0, 10_000))
    return layer(
        correlated(draw(st.sampled_from([4 * cols, 200])), cols, seed=seed),
        rows=draw(st.integers(1, 6)),
        seed=seed + 1,
        bits=draw(st.sampled_from([2, 3, 4, 8])),
        group_size=group_size,
        sym=draw(st.booleans()),
        act_order=draw(st.booleans()),
    )


@FEW
@given(layers())
def test_codes_are_the_oracles_wherever_no_rounding_was_near_a_tie(drawn: Layer) -> None:
    slow = drawn.slowly()
    clear = slow.margin > CLEAR
    assume(bool(clear.any()))
    assert torch.equal(drawn.solved().codes[clear], slow.codes[clear])


@FEW
@given(layers())
def test_loss_is_the_oracles(drawn: Layer) -> None:
    slow = drawn.slowly()
    assume(bool((slow.margin > CLEAR).all()))
    torch.testing.assert_close(drawn.solved().loss.double(), slow.loss, rtol=1e-3, atol=1e-9)


@FEW
@given(layers())
def test_loss_is_the_squared_output_error_of_the_damped_problem(drawn: Layer) -> None:
    solved = drawn.solved()
    true = solver_oracle.output_error(drawn.weight, values(solved.codes, drawn.grid), drawn.damped)
    torch.testing.assert_close(solved.loss.double(), true, rtol=1e-3, atol=1e-6)


def test_almost_all_codes_of_a_run_are_the_oracles() -> None:
    same = total = 0
    for seed in range(8):
        drawn = layer(correlated(300, 96, seed=seed), rows=32, seed=seed, group_size=32)
        agree = drawn.solved().codes == drawn.slowly().codes
        same, total = same + int(agree.sum()), total + agree.numel()
    assert same / total > 0.999


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("cols", [COLUMNS, COLUMNS + 32, 2 * COLUMNS + 32])
def test_errors_cross_from_one_run_of_columns_into_the_next(cols: int, act_order: bool) -> None:
    assert_as_the_oracle(layer(correlated(500, cols), rows=8, group_size=32, act_order=act_order))


def test_duplicate_columns_are_solved_as_the_oracle_solves_them() -> None:
    inputs = correlated(100, 16)
    inputs[:, 9] = inputs[:, 2]
    inputs[:, 10] = inputs[:, 2]
    assert_as_the_oracle(layer(inputs))


@pytest.mark.parametrize("act_order", [False, True])
def test_a_column_that_no_token_used_is_rounded_to_nearest(act_order: bool) -> None:
    inputs = correlated(100, 16)
    dead = [0, 5, 15]
    inputs[:, dead] = 0
    drawn = layer(inputs, act_order=act_order)
    codes = drawn.solved().codes
    assert torch.equal(codes[:, dead], nearest(drawn.weight, drawn.grid)[:, dead])
    assert_as_the_oracle(drawn)


def test_without_any_activation_all_columns_are_rounded_to_nearest() -> None:
    drawn = layer(torch.zeros(10, 16))
    assert torch.equal(drawn.solved().codes, nearest(drawn.weight, drawn.grid))


def test_uncorrelated_columns_are_rounded_to_nearest() -> None:
    drawn = layer(torch.diag(torch.arange(1.0, 17.0)))
    assert torch.equal(drawn.solved().codes, nearest(drawn.weight, drawn.grid))


@pytest.mark.parametrize("tokens", [1, 5, 31])
def test_fewer_tokens_than_columns_are_solved_as_the_oracle_solves_them(tokens: int) -> None:
    assert_as_the_oracle(layer(correlated(tokens, 32, own=1.0)))


def test_activations_and_weights_of_very_different_sizes_are_solved_as_the_oracle_does() -> None:
    inputs = correlated(200, 32) * torch.logspace(-4, 4, 32)
    weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    assert_as_the_oracle(around(weight * torch.logspace(-3, 3, 6)[:, None], inputs, group_size=8))


def test_the_order_of_solving_stays_inside() -> None:
    inputs = correlated(200, 24)
    drawn = layer(inputs, group_size=8, act_order=False)
    shuffle = torch.randperm(24, generator=torch.Generator().manual_seed(3))
    grid = drawn.grid
    moved = Layer(
        drawn.weight[:, shuffle],
        drawn.hessian[shuffle][:, shuffle],
        Grid(grid.scales, grid.zeros, grid.group_of[shuffle], grid.bits),
        torch.argsort(shuffle),  # puts the columns back as they were
    )
    assert torch.equal(moved.solved().codes, drawn.solved().codes[:, shuffle])


def test_columns_are_solved_by_falling_activation_and_ties_by_place() -> None:
    hessian = torch.diag(torch.tensor([1.0, 3.0, 0.0, 3.0, 2.0]))
    assert activation_order(hessian).tolist() == [1, 3, 4, 0, 2]


@FEW
@given(
    seed=st.integers(0, 10_000),
    bits=st.sampled_from([2, 3, 4]),
    sym=st.booleans(),
    act_order=st.booleans(),
)
def test_the_output_error_is_below_that_of_rounding_to_nearest(
    seed: int, bits: int, sym: bool, act_order: bool
) -> None:
    inputs = correlated(200, 32, seed=seed)
    drawn = layer(inputs, rows=16, bits=bits, group_size=16, sym=sym, act_order=act_order)
    rounded = values(nearest(drawn.weight, drawn.grid), drawn.grid)
    solved = values(drawn.solved().codes, drawn.grid)
    plain = solver_oracle.output_error(drawn.weight, rounded, drawn.hessian).sum()
    assert solver_oracle.output_error(drawn.weight, solved, drawn.hessian).sum() < plain


def test_weights_on_the_grid_stay_where_they_are() -> None:
    drawn = layer(correlated(200, 32), group_size=16)
    codes = nearest(drawn.weight, drawn.grid)
    again = drawn._replace(weight=values(codes, drawn.grid)).solved()
    assert torch.equal(again.codes, codes)
    assert float(again.loss.max()) < 1e-6


def test_the_inputs_are_left_as_they_were() -> None:
    drawn = layer(correlated(100, 16))
    before = [tensor.clone() for tensor in (drawn.weight, drawn.hessian, drawn.order)]
    drawn.solved()
    assert all(map(torch.equal, before, (drawn.weight, drawn.hessian, drawn.order)))


def test_the_factor_is_upper_and_its_square_is_the_inverse() -> None:
    drawn = layer(correlated(200, 48))
    factor = factorize(drawn.hessian, drawn.order, damp_percent=DAMP)
    inverse = torch.linalg.inv(drawn.damped[drawn.order][:, drawn.order])
    upper = factor.upper.double()
    assert torch.equal(upper, upper.triu())
    torch.testing.assert_close(
        upper.T @ upper, inverse, rtol=1e-3, atol=1e-5 * float(inverse.max())
    )
    assert (factor.damp_percent, factor.rescue) == (DAMP, "")


def test_what_fp32_cannot_factorize_fp64_does_with_the_same_damping() -> None:
    hessian = torch.ones(16, 16)  # one direction only, and 1 + 1e-9 is 1 in fp32
    factor = factorize(hessian, torch.arange(16), damp_percent=1e-9)
    inverse = torch.linalg.inv(solver_oracle.damped(hessian, 1e-9))
    upper = factor.upper.double()
    assert (factor.damp_percent, factor.rescue) == (1e-9, "float64")
    torch.testing.assert_close(
        upper.T @ upper, inverse, rtol=1e-3, atol=1e-3 * float(inverse.max())
    )


def test_an_indefinite_hessian_gets_more_damping_and_says_so() -> None:
    hessian = torch.tensor([[1.0, 1.15], [1.15, 1.0]])  # smallest eigenvalue -0.15
    factor = factorize(hessian, torch.arange(2), damp_percent=DAMP)
    assert factor.damp_percent == pytest.approx(0.2)
    assert factor.rescue == "damped"
    inverse = torch.linalg.inv(solver_oracle.damped(hessian, 0.2))
    torch.testing.assert_close(
        factor.upper.double().T @ factor.upper.double(), inverse, rtol=1e-3, atol=0
    )


def test_damping_is_never_raised_above_the_mean() -> None:
    hessian = torch.tensor([[1.0, 1.9], [1.9, 1.0]])
    factor = factorize(hessian, torch.arange(2), damp_percent=0.3)
    assert (factor.damp_percent, factor.rescue) == (1.0, "damped")


@pytest.mark.parametrize("diagonal", [-1.0, float("nan"), float("inf")])
def test_a_hopeless_hessian_is_refused(diagonal: float) -> None:
    with pytest.raises(NotPositiveDefinite, match="of 3 columns has no Cholesky factor") as told:
        factorize(torch.eye(3) * diagonal, torch.arange(3), damp_percent=DAMP)
    assert "even with damping 1.0" in told.value.what
    assert told.value.next_step.startswith("check the calibration text")
