"""The compiled loops do what the plain ones do, and both what a slow loop in float64 does."""

from __future__ import annotations

import struct
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import solver_oracle
from camelpress.quantize.kernels import cpu_kernel, reference_kernel
from camelpress.quantize.kernels.device_kernels import pick_kernel
from camelpress.quantize.kernels.kernel import MIN_SCALE, Kernel

FEW = settings(max_examples=40, derandomize=True, deadline=None, database=None)
MANY = settings(max_examples=1000, derandomize=True, deadline=None, database=None)
BITS = (2, 3, 4, 8)
CLEAR = 1e-3  # of a step
HEIGHTS = (
    1,
    3,
    cpu_kernel.TASK_ROWS - 1,
    cpu_kernel.TASK_ROWS,
    cpu_kernel.TASK_ROWS + 1,
    2 * cpu_kernel.TASK_ROWS + 5,
)
# fmt: off
SHAPES = {  # of a group's values
    "normal":      lambda values: values,
    "positive":    lambda values: values.abs() + 0.1,
    "negative":    lambda values: -values.abs(),
    "zero":        lambda values: values * 0,
    "constant":    lambda values: values * 0 + 0.3,
    "one outlier": lambda values: values.index_fill(0, torch.tensor([0]), 50.0),
    "mostly zero": lambda values: values * (values > 1),
    "huge":        lambda values: values * 1e4,
    "tiny":        lambda values: values * 1e-6,
    "tinier":      lambda values: values * 1e-30,
    "each its own": lambda values: values * torch.logspace(-6, 4, values.shape[1]),
}
# fmt: on


class Group(NamedTuple):
    """Some columns that share a grid, as rows."""

    columns: Tensor
    importance: Tensor
    upper: Tensor
    bits: int
    sym: bool

    @property
    def top(self) -> int:
        return 2**self.bits - 1

    def grid(self, kernel: Kernel) -> tuple[Tensor, Tensor]:
        return kernel.search_group(self.columns, self.importance, bits=self.bits, sym=self.sym)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def group(cols: int, rows: int, shape: str, bits: int, sym: bool, seed: int = 0) -> Group:
    source = generator(seed)
    values = SHAPES[shape](torch.randn(cols, rows, generator=source))
    inputs = torch.randn(3 * cols, cols, generator=source).cumsum(dim=1)
    hessian = inputs.T @ inputs + 0.1 * torch.eye(cols)
    upper = torch.linalg.cholesky(torch.linalg.inv(hessian.double()), upper=True).float()
    return Group(values, upper.diagonal().square().reciprocal(), upper, bits, sym)


@st.composite
def groups(draw: st.DrawFn) -> Group:
    return group(
        draw(st.sampled_from([1, 2, 4, 16, 33, 128])),
        draw(st.sampled_from(HEIGHTS)),
        draw(st.sampled_from(sorted(SHAPES))),
        draw(st.sampled_from(BITS)),
        draw(st.booleans()),
        draw(st.integers(0, 10_000)),
    )


def test_a_processor_runs_the_compiled_loops() -> None:
    assert pick_kernel(torch.device("cpu")) is cpu_kernel


# --- the search ---------------------------------------------------------------------------------


def assert_same_grids(drawn: Group) -> None:
    """The same grids, or, where two cost the same but for rounding, one that costs the same."""
    fast, plain = drawn.grid(cpu_kernel), drawn.grid(reference_kernel)
    same = (fast[0] == plain[0]) & (fast[1] == plain[1])
    losses = [
        solver_oracle.loss(drawn.columns.T, drawn.importance, *grid, drawn.top)
        for grid in (fast, plain)
    ]
    apart = (losses[0] - losses[1]).abs() / losses[0].clamp(min=1e-300)
    assert bool((same | (apart < 1e-4)).all())
    assert float(same.float().mean()) > 0.9 or len(same) < 20


@FEW
@given(groups())
def test_both_find_the_same_grids(drawn: Group) -> None:
    assert_same_grids(drawn)


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_both_find_the_same_grids_for_every_kind_of_group(shape: str, bits: int, sym: bool) -> None:
    assert_same_grids(group(16, 70, shape, bits, sym))


@FEW
@given(groups())
def test_grids_are_fp16_numbers_and_zero_points_codes(drawn: Group) -> None:
    for each in (cpu_kernel, reference_kernel):
        scales, zeros = drawn.grid(each)
        assert torch.equal(scales.half().float(), scales)
        assert bool((scales.abs() >= MIN_SCALE).all())
        assert bool((drawn.sym | (scales > 0)).all())
        assert torch.equal(zeros.round().clamp(1, drawn.top), zeros)


@FEW
@given(groups())
def test_a_search_changes_nothing(drawn: Group) -> None:
    columns, importance = drawn.columns.clone(), drawn.importance.clone()
    for each in (cpu_kernel, reference_kernel):
        drawn.grid(each)
        assert torch.equal(drawn.columns, columns)
        assert torch.equal(drawn.importance, importance)


@pytest.mark.parametrize("each", [cpu_kernel, reference_kernel])
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("worst", [float("nan"), float("inf"), 1e38])
def test_where_no_error_is_finite_there_is_no_scale(worst: float, sym: bool, each: Kernel) -> None:
    columns = torch.randn(4, 3, generator=generator(0))
    columns[2, 1] = worst
    scales, _ = each.search_group(columns, torch.ones(4), bits=4, sym=sym)
    assert scales.isfinite().tolist() == [True, False, True]


# --- rounding -----------------------------------------------------------------------------------


def rounded_slowly(drawn: Group, scales: Tensor, zeros: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, errors over the diagonal, and how far from a tie a row's roundings were, float64."""
    columns, upper = drawn.columns.double(), drawn.upper.double()
    codes, errors = torch.empty_like(columns), torch.empty_like(columns)
    margin = torch.full_like(columns[0], 0.5)
    for column in range(len(columns)):
        place = columns[column] / scales.double() + zeros
        codes[column] = place.round().clamp(0, drawn.top)
        margin = margin.minimum(solver_oracle.from_tie(place, drawn.top))
        left = columns[column] - (codes[column] - zeros) * scales.double()
        errors[column] = left / upper[column, column]
        columns = columns - upper[column, :, None] * errors[column]
    return codes, errors, margin


def assert_rounded_alike(drawn: Group, scales: Tensor, zeros: Tensor) -> None:
    codes, errors, margin = rounded_slowly(drawn, scales, zeros)
    clear = margin > CLEAR
    largest = drawn.columns.abs().max() / drawn.upper.diagonal().min()
    for each in (cpu_kernel, reference_kernel):
        found, left = each.round_columns(drawn.columns, drawn.upper, scales, zeros, top=drawn.top)
        assert torch.equal(found[:, clear].double(), codes[:, clear])
        torch.testing.assert_close(
            left[:, clear].double(), errors[:, clear], rtol=1e-3, atol=1e-4 * float(largest)
        )


@FEW
@given(groups())
def test_both_round_alike(drawn: Group) -> None:
    assert_rounded_alike(drawn, *drawn.grid(reference_kernel))


@FEW
@given(groups(), st.integers(0, 10_000))
def test_both_round_alike_on_any_grid(drawn: Group, seed: int) -> None:
    source = generator(seed)
    rows = drawn.columns.shape[1]
    spread = drawn.columns.abs().amax().clamp(min=1e-3) / drawn.top
    scales = (spread * torch.randn(rows, generator=source).exp()).clamp(max=6e4)
    scales = reference_kernel.round_scales_to_fp16(
        scales * torch.randn(rows, generator=source).sign()
    )
    zeros = torch.randint(1, drawn.top + 1, (rows,), generator=source).float()
    assert_rounded_alike(drawn, scales, zeros)


@FEW
@given(groups())
def test_a_group_in_one_call_is_searched_and_then_rounded(drawn: Group) -> None:
    columns = drawn.columns.clone()
    for kernel in (cpu_kernel, reference_kernel):
        result = kernel.round_group(
            drawn.columns, drawn.upper, drawn.importance, bits=drawn.bits, sym=drawn.sym
        )
        scales, zeros = drawn.grid(kernel)
        codes, errors = kernel.round_columns(
            drawn.columns, drawn.upper, scales, zeros, top=drawn.top
        )
        assert torch.equal(result.scales, scales)
        assert torch.equal(result.zeros, zeros)
        assert torch.equal(result.codes, codes)
        assert torch.equal(result.errors, errors)
        assert torch.equal(drawn.columns, columns)


def test_the_part_of_a_larger_factor_will_do() -> None:
    drawn = group(16, 5, "normal", 4, True)
    larger = torch.zeros(20, 20)
    larger[2:18, 2:18] = drawn.upper
    grid = drawn.grid(cpu_kernel)
    alone, part = (
        cpu_kernel.round_columns(drawn.columns.clone(), upper, *grid, top=15)
        for upper in (drawn.upper, larger[2:18, 2:18])
    )
    assert torch.equal(alone[0], part[0])
    assert torch.equal(alone[1], part[1])


# --- both ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_rows_do_not_depend_on_their_neighbours_nor_on_threads(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    drawn = group(16, 2 * cpu_kernel.TASK_ROWS + 5, "normal", 4, False)
    scales, zeros = drawn.grid(cpu_kernel)
    codes, _ = cpu_kernel.round_columns(drawn.columns.clone(), drawn.upper, scales, zeros, top=15)
    for row in (0, cpu_kernel.TASK_ROWS - 1, cpu_kernel.TASK_ROWS, 2 * cpu_kernel.TASK_ROWS + 4):
        alone = drawn._replace(columns=drawn.columns[:, row : row + 1].clone())
        scale, zero = alone.grid(cpu_kernel)
        code, _ = cpu_kernel.round_columns(alone.columns, drawn.upper, scale, zero, top=15)
        assert (float(scale), float(zero)) == (float(scales[row]), float(zeros[row]))
        assert torch.equal(code[:, 0], codes[:, row])


@MANY
@given(st.integers(0, 2**31 - 2**23 - 1), st.sampled_from([1, -1]))
def test_scales_are_rounded_as_the_struct_module_does(bits: int, sign: int) -> None:
    value = sign * struct.unpack("<f", struct.pack("<I", bits))[0]
    try:
        half = abs(struct.unpack("<e", struct.pack("<e", value))[0])
    except OverflowError:
        half = float("inf")
    expected = (-1 if value < 0 else 1) * max(half, MIN_SCALE)
    assert float(cpu_kernel._round_to_fp16(value)) == expected
    assert float(reference_kernel.round_scales_to_fp16(torch.tensor([value]))) == expected


@pytest.mark.parametrize("exponent", range(-26, 17))
def test_scales_near_every_tie_are_rounded_as_torch_does(exponent: int) -> None:
    places = torch.tensor([0, 1, 2, 511, 512, 1022, 1023], dtype=torch.float64)
    ties = 2.0**exponent * (1 + (places + 0.5) / 1024)
    near = torch.cat([ties * (1 + off) for off in (0, 2**-23, -(2**-23))]).float()
    expected = reference_kernel.round_scales_to_fp16(near)
    assert [float(cpu_kernel._round_to_fp16(value)) for value in near.numpy()] == expected.tolist()
