"""The grid spans each group, in numbers that survive being stored."""

from __future__ import annotations

import math
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from camelpress.core.errors import NumericsProblem
from camelpress.quantize.grid import SMALLEST_SCALE, fit, nearest, values

FEW = settings(max_examples=60, derandomize=True, deadline=None, database=None)
BITS = (2, 3, 4, 8)


def half(value: float) -> float:
    """The nearest fp16 number, as the struct module rounds it."""
    rounded: float = struct.unpack("<e", struct.pack("<e", value))[0]
    return rounded


def slow_group(weights: list[float], bits: int, sym: bool) -> tuple[float, int]:
    """Scale and zero point of one group, by the formulas and in plain python."""
    top = 2**bits - 1
    if sym:
        return half(max(max(map(abs, weights)) * 2 / top, SMALLEST_SCALE)), 2 ** (bits - 1)
    low, high = min(0.0, *weights), max(0.0, *weights)
    scale = half(max((high - low) / top, SMALLEST_SCALE))
    zero = round(-low / scale)
    if zero < 1:  # v1 cannot hold 0: one step goes to waste below, the others reach up to `high`
        return half(max(high / (top - 1), SMALLEST_SCALE)), 1
    return scale, min(zero, top)


def random(rows: int, cols: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", [-1, 4, 16])
def test_scales_and_zero_points_are_those_of_the_formulas(
    bits: int, sym: bool, group_size: int
) -> None:
    weight = torch.cat([random(5, 32), random(2, 32).abs(), -random(2, 32).abs()])
    grid = fit(weight, bits=bits, group_size=group_size, sym=sym)
    size = 32 if group_size == -1 else group_size
    for row in range(len(weight)):
        for group in range(32 // size):
            members = weight[row, group * size : (group + 1) * size].tolist()
            scale, zero = slow_group(members, bits, sym)
            assert int(grid.zeros[row, group]) == zero
            assert float(grid.scales[row, group]) == pytest.approx(scale, rel=1e-3)


@pytest.mark.parametrize("group_size", [-1, 4])
def test_each_column_knows_its_group(group_size: int) -> None:
    grid = fit(random(2, 8), bits=4, group_size=group_size, sym=True)
    assert grid.group_of.tolist() == ([0] * 8 if group_size == -1 else [0] * 4 + [1] * 4)
    assert grid.scales.shape == (2, 1 if group_size == -1 else 2)


@st.composite
def weights(draw: st.DrawFn) -> Tensor:
    size = draw(st.sampled_from([1e-8, 1e-4, 0.02, 1.0, 100.0]))
    offset = draw(st.sampled_from([-2.0, 0.0, 0.5, 2.0]))
    return size * (random(3, 16, seed=draw(st.integers(0, 10_000))) + offset)


@FEW
@given(weights(), st.sampled_from(BITS), st.booleans())
def test_nearest_is_nearer_than_every_other_code(weight: Tensor, bits: int, sym: bool) -> None:
    grid = fit(weight, bits=bits, group_size=8, sym=sym)
    scales = grid.scales.double()[:, grid.group_of.long()]
    zeros = grid.zeros.double()[:, grid.group_of.long()]
    every = torch.arange(2**bits)[:, None, None]
    distance = ((every - zeros) * scales - weight.double()).abs()
    chosen = distance.gather(0, nearest(weight, grid).long()[None])[0]
    assert bool((chosen <= distance.min(dim=0).values * (1 + 1e-5)).all())


@FEW
@given(weights(), st.sampled_from(BITS), st.booleans())
def test_no_weight_is_more_than_a_little_over_half_a_step_off(
    weight: Tensor, bits: int, sym: bool
) -> None:
    grid = fit(weight, bits=bits, group_size=8, sym=sym)
    step = grid.scales.float()[:, grid.group_of.long()]
    far = (values(nearest(weight, grid), grid) - weight).abs() / step
    rounded_zero = 0.5 if not sym else 0.0  # the grid of integers may begin half a step late
    slack = 2**bits * 2**-11  # the scale itself was rounded to fp16
    assert float(far.max()) <= 0.5 + rounded_zero + slack


@FEW
@given(weights(), st.sampled_from(BITS))
def test_zero_points_survive_the_v1_format(weight: Tensor, bits: int) -> None:
    zeros = fit(weight, bits=bits, group_size=4, sym=False).zeros
    assert 1 <= int(zeros.min())
    assert int(zeros.max()) <= 2**bits - 1


@FEW
@given(weights(), st.sampled_from(BITS), st.booleans())
def test_values_are_scale_times_code_minus_zero(weight: Tensor, bits: int, sym: bool) -> None:
    grid = fit(weight, bits=bits, group_size=8, sym=sym)
    codes = nearest(weight, grid)
    found = values(codes, grid)
    for row, column in ((0, 0), (1, 7), (2, 15)):
        group = column // 8
        code, zero = int(codes[row, column]), int(grid.zeros[row, group])
        assert 0 <= code <= grid.top
        assert float(found[row, column]) == float(grid.scales[row, group]) * (code - zero)


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_zero_rows_and_zero_groups_give_zeros(bits: int, sym: bool) -> None:
    weight = random(3, 16)
    weight[1] = 0
    weight[2, 8:] = 0
    grid = fit(weight, bits=bits, group_size=8, sym=sym)
    found = values(nearest(weight, grid), grid)
    assert bool(grid.scales.isfinite().all())
    assert float(grid.scales.min()) >= SMALLEST_SCALE
    assert not bool(found[1].any())
    assert not bool(found[2, 8:].any())


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("constant", [0.3, -0.3])
@pytest.mark.parametrize("bits", BITS)
def test_a_constant_group_comes_back(bits: int, constant: float, sym: bool) -> None:
    weight = torch.full((1, 8), constant)
    grid = fit(weight, bits=bits, group_size=8, sym=sym)
    step = float(grid.scales[0, 0])
    off = abs(float(values(nearest(weight, grid), grid)[0, 0]) - constant)
    assert off <= (0.51 if sym else 0.01) * step + 1e-3 * abs(constant)


@pytest.mark.parametrize("bits", BITS)
def test_positive_weights_lose_no_more_than_half_a_step_at_the_top(bits: int) -> None:
    weight = torch.linspace(0.1, 1.0, 16)[None]
    grid = fit(weight, bits=bits, group_size=16, sym=False)
    top = float(values(nearest(weight, grid), grid)[0, -1])
    assert top == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("sym", [True, False])
def test_weights_too_large_for_a_16_bit_scale_are_refused(sym: bool) -> None:
    weight = random(2, 16)
    weight[1, 3] = 2e6
    with pytest.raises(NumericsProblem, match="1 scales of a layer do not fit float16"):
        fit(weight, bits=4, group_size=8, sym=sym)


def test_a_tiny_group_keeps_a_normal_scale() -> None:
    grid = fit(torch.full((1, 4), 1e-8), bits=4, group_size=4, sym=True)
    assert float(grid.scales[0, 0]) == SMALLEST_SCALE
    assert math.isfinite(float(values(nearest(torch.full((1, 4), 1e-8), grid), grid)[0, 0]))
