"""The grid of a group is the best of those tried, in numbers that survive being stored."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import solver_oracle
from camelpress.core.errors import NumericsProblem
from camelpress.quantize.kernels import cpu_kernel, reference_kernel
from camelpress.quantize.kernels.kernel import MIN_SCALE, Kernel
from camelpress.quantize.solver.grid import (
    QuantGrid,
    dequantize_codes,
    round_to_nearest,
    search_grid,
)

FEW = settings(max_examples=40, derandomize=True, deadline=None, database=None)
BITS = (2, 3, 4, 8)
KERNELS: tuple[Kernel, ...] = (cpu_kernel, reference_kernel)


def random(rows: int, cols: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def searched(
    weight: Tensor,
    *,
    bits: int,
    group_size: int,
    sym: bool,
    importance: Tensor | None = None,
    kernel: Kernel = cpu_kernel,
) -> QuantGrid:
    return search_grid(
        weight,
        kernel,
        importance=torch.ones_like(weight[0]) if importance is None else importance,
        bits=bits,
        group_size=group_size,
        sym=sym,
    )


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", [-1, 4, 16])
def test_grids_are_the_best_of_all_that_are_tried(
    bits: int, sym: bool, group_size: int, kernel: Kernel
) -> None:
    weight = torch.cat([random(5, 32), random(2, 32).abs(), -random(2, 32).abs()])
    importance = random(1, 32, seed=1)[0].exp()
    grid = searched(
        weight, bits=bits, group_size=group_size, sym=sym, importance=importance, kernel=kernel
    )
    size = 32 if group_size == -1 else group_size
    for group in range(32 // size):
        part = slice(group * size, (group + 1) * size)
        best = solver_oracle.best_grid(weight[:, part], importance[part], bits=bits, sym=sym)
        clear = best.margin > 1e-4
        assert float(clear.float().mean()) >= 0.5
        assert torch.equal(grid.scales[clear, group].double(), best.scale[clear])
        assert torch.equal(grid.zeros[clear, group].double(), best.zero[clear])


@pytest.mark.parametrize("group_size", [-1, 4])
def test_each_column_knows_its_group(group_size: int) -> None:
    grid = searched(random(2, 8), bits=4, group_size=group_size, sym=True)
    assert grid.column_groups().tolist() == ([0] * 8 if group_size == -1 else [0] * 4 + [1] * 4)
    assert grid.scales.shape == (2, 1 if group_size == -1 else 2)


def test_rows_of_a_grid_are_the_grid_of_those_rows() -> None:
    weight = random(6, 16)
    part = searched(weight, bits=3, group_size=4, sym=False).select_rows(slice(2, 5))
    alone = searched(weight[2:5], bits=3, group_size=4, sym=False)
    assert torch.equal(part.scales, alone.scales)
    assert torch.equal(part.zeros, alone.zeros)
    assert (part.bits, part.group_size) == (3, 4)


@st.composite
def weights(draw: st.DrawFn) -> Tensor:
    size = draw(st.sampled_from([1e-8, 1e-4, 0.02, 1.0, 100.0]))
    offset = draw(st.sampled_from([-2.0, 0.0, 0.5, 2.0]))
    return size * (random(3, 16, seed=draw(st.integers(0, 10_000))) + offset)


@FEW
@given(weights(), st.sampled_from(BITS), st.booleans())
def test_nearest_is_nearer_than_every_other_code(weight: Tensor, bits: int, sym: bool) -> None:
    grid = searched(weight, bits=bits, group_size=8, sym=sym)
    scales, zeros = (grid.expand_columns(each).double() for each in (grid.scales, grid.zeros))
    every = torch.arange(2**bits)[:, None, None]
    distance = ((every - zeros) * scales - weight.double()).abs()
    chosen = distance.gather(0, round_to_nearest(weight, grid).long()[None])[0]
    slack = 1e-6 * scales.abs()  # fp32 divides, and a tie is a tie
    assert bool((chosen <= distance.min(dim=0).values * (1 + 1e-5) + slack).all())


@FEW
@given(weights(), st.sampled_from(BITS), st.booleans())
def test_the_search_costs_no_more_than_half_a_step_of_the_whole_span_everywhere(
    weight: Tensor, bits: int, sym: bool
) -> None:
    grid = searched(weight, bits=bits, group_size=16, sym=sym)
    squared = (
        (dequantize_codes(round_to_nearest(weight, grid), grid) - weight)
        .double()
        .square()
        .sum(dim=1)
    )
    high, low = weight.amax(dim=1).clamp(min=0), weight.amin(dim=1).clamp(max=0)
    span = 2 * high.maximum(-low) if sym else high - low
    step = (span / (2**bits - 1)).clamp(min=MIN_SCALE).double()
    lost = 0.5 if sym else 1.0  # whole zero points begin up to half a step late, and not at 0
    coarse = (MIN_SCALE / 2 / step).clamp(min=2**-11)  # the scale is rounded to fp16
    slack = 2**bits * coarse
    assert bool((squared <= 16 * (step * (lost + slack)).square()).all())


@FEW
@given(weights(), st.sampled_from(BITS), st.booleans(), st.integers(0, 1000))
def test_no_scale_that_is_tried_would_cost_less(
    weight: Tensor, bits: int, sym: bool, seed: int
) -> None:
    importance = random(1, 16, seed=seed)[0].exp()
    grid = searched(weight, bits=bits, group_size=-1, sym=sym, importance=importance)
    best = solver_oracle.best_grid(weight, importance, bits=bits, sym=sym)
    found, least = (
        solver_oracle.loss(weight, importance, scale, zero, grid.max_code)
        for scale, zero in ((grid.scales[:, 0], grid.zeros[:, 0]), (best.scale, best.zero))
    )
    torch.testing.assert_close(found, least, rtol=1e-3, atol=0)


def test_either_sign_is_chosen() -> None:
    negative = searched(random(64, 32), bits=4, group_size=32, sym=True).scales < 0
    assert 0.2 < float(negative.float().mean()) < 0.8


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_the_sign_gives_the_longer_side_the_code_more(side: float) -> None:
    weight = side * torch.tensor([[1.0, 0.5, 0.25, -0.9]])
    grid = searched(weight, bits=2, group_size=4, sym=True)  # codes -2, -1, 0, 1
    assert float(grid.scales[0, 0]) * side < 0


def test_columns_that_count_more_are_met_better() -> None:
    weight = random(32, 16)
    first = torch.cat([torch.full((8,), 100.0), torch.ones(8)])
    errors = []
    for importance in (first, first.flip(0)):
        grid = searched(weight, bits=3, group_size=16, sym=True, importance=importance)
        errors.append(
            (dequantize_codes(round_to_nearest(weight, grid), grid) - weight).square().sum(dim=0)
        )
    assert float(errors[0][:8].sum()) < float(errors[1][:8].sum())
    assert float(errors[1][8:].sum()) < float(errors[0][8:].sum())


@FEW
@given(weights(), st.sampled_from(BITS))
def test_zero_points_survive_the_v1_format(weight: Tensor, bits: int) -> None:
    zeros = searched(weight, bits=bits, group_size=4, sym=False).zeros
    assert 1 <= int(zeros.min())
    assert int(zeros.max()) <= 2**bits - 1


@FEW
@given(weights(), st.sampled_from(BITS), st.booleans())
def test_values_are_scale_times_code_minus_zero(weight: Tensor, bits: int, sym: bool) -> None:
    grid = searched(weight, bits=bits, group_size=8, sym=sym)
    codes = round_to_nearest(weight, grid)
    found = dequantize_codes(codes, grid)
    for row, column in ((0, 0), (1, 7), (2, 15)):
        group = column // 8
        code, zero = int(codes[row, column]), int(grid.zeros[row, group])
        assert 0 <= code <= grid.max_code
        assert float(found[row, column]) == float(grid.scales[row, group]) * (code - zero)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_zero_rows_and_zero_groups_give_zeros(bits: int, sym: bool, kernel: Kernel) -> None:
    weight = random(3, 16)
    weight[1] = 0
    weight[2, 8:] = 0
    grid = searched(weight, bits=bits, group_size=8, sym=sym, kernel=kernel)
    found = dequantize_codes(round_to_nearest(weight, grid), grid)
    assert bool(grid.scales.isfinite().all())
    assert float(grid.scales.abs().min()) >= MIN_SCALE
    assert not bool(found[1].any())
    assert not bool(found[2, 8:].any())


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("constant", [0.3, -0.3])
@pytest.mark.parametrize("bits", BITS)
def test_a_constant_group_comes_back(bits: int, constant: float, sym: bool) -> None:
    weight = torch.full((1, 8), constant)
    grid = searched(weight, bits=bits, group_size=8, sym=sym)
    off = abs(float(dequantize_codes(round_to_nearest(weight, grid), grid)[0, 0]) - constant)
    assert off <= 0.025 * abs(constant)  # half of how much shrunken spans differ, and fp16


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bits", BITS)
def test_positive_weights_reach_the_top_though_no_zero_point_is_0(
    bits: int, kernel: Kernel
) -> None:
    weight = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    grid = searched(weight, bits=bits, group_size=4, sym=False, kernel=kernel)
    assert (
        float((dequantize_codes(round_to_nearest(weight, grid), grid) - weight).abs().max()) < 1e-3
    )


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("size", [2e6, 1e25, 1e38])
def test_weights_too_large_for_a_16_bit_scale_are_refused(
    size: float, sym: bool, kernel: Kernel
) -> None:
    weight = random(2, 16)
    weight[1, 3] = size
    with pytest.raises(NumericsProblem, match="1 scales of a layer do not fit float16") as told:
        searched(weight, bits=4, group_size=8, sym=sym, kernel=kernel)
    assert told.value.next_step == "check the checkpoint: its weights are too large"


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("sym", [True, False])
def test_where_only_a_shrunken_scale_fits_16_bits_it_is_taken(sym: bool, kernel: Kernel) -> None:
    size = 6e5 if sym else 1.2e6  # 80 000 a step, and fp16 ends at 65 504
    grid = searched(torch.full((1, 4), size), bits=4, group_size=4, sym=sym, kernel=kernel)
    assert 40_000 <= abs(float(grid.scales[0, 0])) <= 65_504


@pytest.mark.parametrize("sym", [True, False])
def test_a_group_that_no_scale_fits_takes_the_smallest(sym: bool) -> None:
    weight = torch.full((1, 4), 1e-8)
    grid = searched(weight, bits=4, group_size=4, sym=sym)
    assert abs(float(grid.scales[0, 0])) == MIN_SCALE
    assert math.isfinite(float(dequantize_codes(round_to_nearest(weight, grid), grid)[0, 0]))
