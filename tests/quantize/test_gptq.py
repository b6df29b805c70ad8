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
from camelpress.quantize.kernels import cpu_kernel, reference_kernel
from camelpress.quantize.kernels.kernel import LAZY_BATCH_COLUMNS, Kernel
from camelpress.quantize.solver.gptq import (
    GptqSolution,
    activation_order,
    factorize_hessian,
    solve_gptq,
)
from camelpress.quantize.solver.grid import dequantize_codes, round_to_nearest, search_grid

DAMP = 0.01
CLEAR = 1e-3  # of a step; a decision this far from a tie is beyond fp32's doubt
FEW = settings(max_examples=30, derandomize=True, deadline=None, database=None)
KERNELS: tuple[Kernel, ...] = (cpu_kernel, reference_kernel)


class Layer(NamedTuple):
    """A layer to round, and how."""

    weight: Tensor
    hessian: Tensor
    bits: int = 4
    group_size: int = -1
    sym: bool = True
    kernel: Kernel = cpu_kernel

    @property
    def order(self) -> Tensor:
        return activation_order(self.hessian.diagonal(), group_size=self.group_size)

    @property
    def damped(self) -> Tensor:
        return solver_oracle.damped(self.hessian, DAMP)

    def solved(self) -> GptqSolution:
        factor = factorize_hessian(self.hessian, self.order, damp_percent=DAMP)
        return solve_gptq(
            self.weight,
            factor,
            self.kernel,
            bits=self.bits,
            group_size=self.group_size,
            sym=self.sym,
        )

    def slowly(self) -> solver_oracle.Answer:
        return solver_oracle.solve(
            self.weight,
            self.damped,
            self.order,
            bits=self.bits,
            group_size=self.group_size,
            sym=self.sym,
        )

    def nearest(self, importance: Tensor) -> GptqSolution:
        """Rounded to nearest, each group on the grid that is best so."""
        grid = search_grid(
            self.weight,
            self.kernel,
            importance=importance,
            bits=self.bits,
            group_size=self.group_size,
            sym=self.sym,
        )
        codes = round_to_nearest(self.weight, grid)
        error = solver_oracle.output_error(self.weight, dequantize_codes(codes, grid), self.damped)
        return GptqSolution(codes, grid, error)


def random(rows: int, cols: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def layer(inputs: Tensor, *, rows: int = 6, seed: int = 0) -> Layer:
    return Layer(random(rows, inputs.shape[1], seed), inputs.T @ inputs)


def assert_same(solved: GptqSolution, slow: solver_oracle.Answer, clear: Tensor) -> None:
    """Same codes and same grid in some rows."""
    assert torch.equal(solved.codes[clear], slow.codes[clear])
    assert torch.equal(solved.grid.scales[clear].double(), slow.scales[clear])
    assert torch.equal(solved.grid.zeros[clear].double(), slow.zeros[clear])


def assert_as_the_oracle(drawn: Layer) -> None:
    """The same in all rows without a decision near a tie, and most rows are so."""
    slow = drawn.slowly()
    clear = slow.margin > CLEAR / 10
    assert float(clear.float().mean()) >= 0.5
    assert_same(drawn.solved(), slow, clear)


def correlated(tokens: int, cols: int, *, seed: int = 0, own: float = 0.3) -> Tensor:
    """Activations that share a few directions; `own` is what each column has to itself."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(tokens, 4, generator=generator) @ torch.randn(4, cols, generator=generator)
    return shared + own * torch.randn(tokens, cols, generator=generator)


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    cols = 8 * draw(st.integers(1, 4))
    seed = draw(st.integers(0, 10_000))
    inputs = correlated(draw(st.sampled_from([4 * cols, 200])), cols, seed=seed)
    return layer(inputs, rows=draw(st.integers(1, 6)), seed=seed + 1)._replace(
        bits=draw(st.sampled_from([2, 3, 4, 8])),
        group_size=draw(st.sampled_from([-1, 4, 8])),
        sym=draw(st.booleans()),
        kernel=draw(st.sampled_from(KERNELS)),
    )


@FEW
@given(layers())
def test_codes_and_grids_are_the_oracles_wherever_no_decision_was_near_a_tie(drawn: Layer) -> None:
    slow = drawn.slowly()
    clear = slow.margin > CLEAR
    assume(bool(clear.any()))
    assert_same(drawn.solved(), slow, clear)


@FEW
@given(
    seed=st.integers(0, 10_000),
    bits=st.sampled_from([2, 3, 4, 8]),
    group_size=st.sampled_from([16, 32, 64, LAZY_BATCH_COLUMNS, -1]),
    sym=st.booleans(),
    rows=st.sampled_from([1, 5, cpu_kernel.TASK_ROWS + 3]),
)
def test_both_kernels_solve_unused_columns_and_dead_rows_alike(
    seed: int, bits: int, group_size: int, sym: bool, rows: int
) -> None:
    inputs = correlated(600, 2 * LAZY_BATCH_COLUMNS, seed=seed)
    inputs[:, ::37] = 0
    drawn = layer(inputs, rows=rows, seed=seed)
    drawn.weight[:, 5::61] = 0
    drawn.weight[rows // 2] = 0
    drawn = drawn._replace(bits=bits, group_size=group_size, sym=sym)
    compiled, plain = (drawn._replace(kernel=kernel).solved() for kernel in KERNELS)
    same = (compiled.codes == plain.codes).all(dim=1)
    assert int((~same).sum()) <= max(1, rows // 8)  # near ties
    assert torch.equal(compiled.grid.scales[same], plain.grid.scales[same])
    assert torch.equal(compiled.grid.zeros[same], plain.grid.zeros[same])
    torch.testing.assert_close(
        compiled.damped_error[same], plain.damped_error[same], rtol=1e-3, atol=0
    )
    middle = compiled.grid.select_rows(slice(rows // 2, rows // 2 + 1))
    assert not bool(dequantize_codes(compiled.codes[rows // 2, None], middle).any())


@pytest.mark.parametrize("sym", [True, False])
def test_almost_all_codes_of_a_run_are_the_oracles(sym: bool) -> None:
    same = total = 0
    for seed in range(3):
        drawn = layer(correlated(300, 96, seed=seed), rows=32, seed=seed)
        drawn = drawn._replace(group_size=32, sym=sym)
        agree = drawn.solved().codes == drawn.slowly().codes
        same, total = same + int(agree.sum()), total + agree.numel()
    assert same / total > 0.99


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("group_size", [32, -1])
@pytest.mark.parametrize(
    "cols", [LAZY_BATCH_COLUMNS, LAZY_BATCH_COLUMNS + 32, 2 * LAZY_BATCH_COLUMNS + 32]
)
def test_errors_cross_from_one_run_of_columns_into_the_next(
    cols: int, group_size: int, sym: bool
) -> None:
    drawn = layer(correlated(500, cols), rows=8)
    assert_as_the_oracle(drawn._replace(group_size=group_size, sym=sym))


def test_duplicate_columns_are_solved_as_the_oracle_solves_them() -> None:
    inputs = correlated(100, 16)
    inputs[:, 9] = inputs[:, 2]
    inputs[:, 10] = inputs[:, 2]
    assert_as_the_oracle(layer(inputs))


@pytest.mark.parametrize("group_size", [-1, 4])
def test_a_column_that_no_token_used_is_rounded_to_nearest(group_size: int) -> None:
    inputs = correlated(100, 16)
    dead = [0, 5, 12, 13, 14, 15]
    inputs[:, dead] = 0
    drawn = layer(inputs)._replace(group_size=group_size)
    solved = drawn.solved()
    assert torch.equal(solved.codes[:, dead], round_to_nearest(drawn.weight, solved.grid)[:, dead])
    assert_as_the_oracle(drawn)


def test_without_any_activation_all_columns_are_rounded_to_nearest() -> None:
    drawn = layer(torch.zeros(10, 16))
    assert torch.equal(drawn.solved().codes, drawn.nearest(torch.ones(16)).codes)


def test_uncorrelated_columns_are_rounded_to_nearest_on_a_grid_that_minds_their_sizes() -> None:
    drawn = layer(torch.diag(torch.arange(1.0, 17.0)))._replace(group_size=8)
    rounded = drawn.nearest(drawn.damped.diagonal().float())
    assert torch.equal(drawn.solved().codes, rounded.codes)
    assert torch.equal(drawn.solved().grid.scales, rounded.grid.scales)


@pytest.mark.parametrize("tokens", [1, 5, 31])
def test_fewer_tokens_than_columns_are_solved_as_the_oracle_solves_them(tokens: int) -> None:
    assert_as_the_oracle(layer(correlated(tokens, 32, own=1.0)))


@pytest.mark.parametrize("sym", [True, False])
def test_activations_and_weights_of_very_different_sizes_are_solved_as_the_oracle_does(
    sym: bool,
) -> None:
    inputs = correlated(200, 32) * torch.logspace(-4, 4, 32)
    weight = random(6, 32) * torch.logspace(-3, 3, 6)[:, None]
    assert_as_the_oracle(Layer(weight, inputs.T @ inputs, group_size=8, sym=sym))


def test_an_outlier_among_the_weights_is_solved_as_the_oracle_does() -> None:
    drawn = layer(correlated(200, 32))._replace(group_size=8)
    drawn.weight[:, 3] *= 100
    assert_as_the_oracle(drawn)


def test_where_columns_stand_within_groups_and_groups_in_a_row_makes_no_difference() -> None:
    drawn = layer(correlated(200, 24))._replace(group_size=8)
    generator = torch.Generator().manual_seed(3)
    shuffle = torch.cat([8 * group + torch.randperm(8, generator=generator) for group in (2, 0, 1)])
    moved = drawn._replace(
        weight=drawn.weight[:, shuffle], hessian=drawn.hessian[shuffle][:, shuffle]
    )
    assert torch.equal(moved.solved().codes, drawn.solved().codes[:, shuffle])
    assert torch.equal(moved.solved().grid.scales, drawn.solved().grid.scales[:, [2, 0, 1]])


def test_groups_are_solved_by_their_costliest_column_and_ties_by_place() -> None:
    diagonal = torch.tensor([1.0, 3.0, 0.0, 3.0, 2.0, 5.0])
    assert activation_order(diagonal, group_size=-1).tolist() == [5, 1, 3, 4, 0, 2]
    assert activation_order(diagonal, group_size=1).tolist() == [5, 1, 3, 4, 0, 2]
    assert activation_order(diagonal, group_size=2).tolist() == [5, 4, 1, 0, 3, 2]
    assert activation_order(diagonal, group_size=3).tolist() == [5, 3, 4, 1, 0, 2]


@FEW
@given(
    diagonal=st.lists(st.integers(0, 5), min_size=12, max_size=12),
    group_size=st.sampled_from([-1, 1, 2, 3, 4, 6, 12]),
)
def test_groups_are_kept_together(diagonal: list[int], group_size: int) -> None:
    order = activation_order(torch.tensor(diagonal).float(), group_size=group_size)
    assert sorted(order.tolist()) == list(range(12))
    size = 12 if group_size == -1 else group_size
    groups = (order // size).reshape(-1, size)
    assert bool((groups == groups[:, :1]).all())


@FEW
@given(seed=st.integers(0, 10_000), bits=st.sampled_from([2, 3, 4]), sym=st.booleans())
def test_the_output_error_is_below_that_of_rounding_to_nearest(
    seed: int, bits: int, sym: bool
) -> None:
    drawn = layer(correlated(200, 32, seed=seed), rows=16)
    drawn = drawn._replace(bits=bits, sym=sym, group_size=16)
    solved, rounded = drawn.solved(), drawn.nearest(drawn.hessian.diagonal())
    errors = [
        float(solver_oracle.output_error(drawn.weight, stored, drawn.hessian).sum())
        for stored in (dequantize_codes(each.codes, each.grid) for each in (solved, rounded))
    ]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("bits", "sym", "zero"), [(2, True, 2), (3, True, 4), (4, False, 5)])
def test_weights_on_a_grid_that_is_tried_stay_where_they_are(
    bits: int, sym: bool, zero: int, kernel: Kernel
) -> None:
    codes = torch.randint(0, 2**bits, (6, 32), generator=torch.Generator().manual_seed(0))
    codes[:, ::16], codes[:, 1::16] = 0, 2**bits - 1
    weight = (codes - zero) / 16
    hessian = layer(correlated(200, 32)).hessian
    solved = Layer(weight, hessian, bits, 16, sym, kernel).solved()
    assert torch.equal(dequantize_codes(solved.codes, solved.grid), weight)


def test_the_inputs_are_left_as_they_were() -> None:
    drawn = layer(correlated(100, 16))
    before = [tensor.clone() for tensor in (drawn.weight, drawn.hessian)]
    drawn.solved()
    assert all(map(torch.equal, before, (drawn.weight, drawn.hessian)))


def test_a_factor_can_be_used_again() -> None:
    drawn = layer(correlated(100, 16))
    factor = factorize_hessian(drawn.hessian, drawn.order, damp_percent=DAMP)
    first, again = (
        solve_gptq(drawn.weight, factor, cpu_kernel, bits=4, group_size=-1, sym=True)
        for _ in range(2)
    )
    assert torch.equal(first.codes, again.codes)


def test_the_factor_is_upper_and_its_square_is_the_inverse() -> None:
    drawn = layer(correlated(200, 48))
    factor = factorize_hessian(drawn.hessian, drawn.order, damp_percent=DAMP)
    inverse = torch.linalg.inv(drawn.damped[drawn.order][:, drawn.order])
    upper = factor.upper.double()
    assert torch.equal(upper, upper.triu())
    torch.testing.assert_close(
        upper.T @ upper, inverse, rtol=1e-3, atol=1e-5 * float(inverse.max())
    )
    assert (factor.damp_percent, factor.rescue) == (DAMP, "")


def test_what_fp32_cannot_factorize_fp64_does_with_the_same_damping() -> None:
    hessian = torch.ones(16, 16)  # one direction only, and 1 + 1e-9 is 1 in fp32
    factor = factorize_hessian(hessian, torch.arange(16), damp_percent=1e-9)
    inverse = torch.linalg.inv(solver_oracle.damped(hessian, 1e-9))
    upper = factor.upper.double()
    assert (factor.damp_percent, factor.rescue) == (1e-9, "float64")
    torch.testing.assert_close(
        upper.T @ upper, inverse, rtol=1e-3, atol=1e-3 * float(inverse.max())
    )


def test_an_indefinite_hessian_gets_more_damping_and_says_so() -> None:
    hessian = torch.tensor([[1.0, 1.15], [1.15, 1.0]])  # smallest eigenvalue -0.15
    factor = factorize_hessian(hessian, torch.arange(2), damp_percent=DAMP)
    assert factor.damp_percent == pytest.approx(0.2)
    assert factor.rescue == "damped"
    inverse = torch.linalg.inv(solver_oracle.damped(hessian, 0.2))
    torch.testing.assert_close(
        factor.upper.double().T @ factor.upper.double(), inverse, rtol=1e-3, atol=0
    )


def test_damping_is_never_raised_above_the_mean() -> None:
    hessian = torch.tensor([[1.0, 1.9], [1.9, 1.0]])
    factor = factorize_hessian(hessian, torch.arange(2), damp_percent=0.3)
    assert (factor.damp_percent, factor.rescue) == (1.0, "damped")


@pytest.mark.parametrize("diagonal", [-1.0, float("nan"), float("inf")])
def test_a_hopeless_hessian_is_refused(diagonal: float) -> None:
    with pytest.raises(NotPositiveDefinite, match="of 3 columns has no Cholesky factor") as told:
        factorize_hessian(torch.eye(3) * diagonal, torch.arange(3), damp_percent=DAMP)
    assert "even with damping 1.0" in told.value.message
    assert told.value.next_step.startswith("check the calibration text")
