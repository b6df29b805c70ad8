"""A matrix is rounded row by row, whoever takes which rows, and its error is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from torch import Tensor

import solver_oracle
from camelpress.core.errors import NotPositiveDefinite
from camelpress.core.packing.gptq_format import dequantize_gptq
from camelpress.core.packing.row_loss import mean_row_loss
from camelpress.inference.streaming.process_group import ProcessGroup
from camelpress.quantize.kernels.device_kernels import pick_kernel
from camelpress.quantize.settings import QuantizeSettings
from camelpress.quantize.solver import layer
from camelpress.quantize.solver.gptq import (
    FALLBACK,
    activation_order,
    factorize_hessian,
    solve_gptq,
)
from camelpress.quantize.solver.grid import round_to_nearest
from camelpress.quantize.solver.layer import RoundedMatrix, round_layer

CPU = torch.device("cpu")
ROWS, COLS = 40, 32


def seen(rows: int = ROWS, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight and a Hessian."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(100, COLS, generator=generator).cumsum(dim=1)
    return torch.randn(rows, COLS, generator=generator), inputs.T @ inputs


def settings(**changes: Any) -> QuantizeSettings:
    return QuantizeSettings(**({"group_size": 16, "damp_percent": 0.02} | changes))


def rounded(weight: Tensor, hessian: Tensor, wanted: QuantizeSettings) -> RoundedMatrix:
    return round_layer(weight, hessian, ProcessGroup(), wanted)[0]


@pytest.mark.parametrize("sym", [True, False])
def test_a_layer_is_solved_in_the_order_of_its_activations(sym: bool) -> None:
    weight, hessian = seen()
    order = activation_order(hessian.diagonal(), group_size=16)
    factor = factorize_hessian(hessian, order, damp_percent=0.02)
    expected = solve_gptq(weight, factor, pick_kernel(CPU), bits=3, group_size=16, sym=sym)
    found = rounded(weight, hessian, settings(sym=sym, bits=3))
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.grid.scales, expected.grid.scales)
    assert torch.equal(found.grid.zeros, expected.grid.zeros)


@pytest.mark.parametrize("height", [1, 8, 17, ROWS])
def test_the_height_of_a_block_makes_no_difference(
    height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = rounded(*seen(), settings())
    monkeypatch.setattr(layer, "SOLVE_ROWS", height)
    parts = rounded(*seen(), settings())
    agree = (parts.codes == whole.codes).float().mean()
    assert float(agree) > 0.99  # matrix products of other heights may round apart
    torch.testing.assert_close(parts.error, whole.error, rtol=0.05, atol=1e-3)
    torch.testing.assert_close(parts.energy, whole.energy, rtol=1e-4, atol=0)


def test_a_block_is_taller_on_a_gpu() -> None:
    assert layer.block_rows(torch.device("cuda", 1)) == layer.CUDA_SOLVE_ROWS
    assert layer.block_rows(CPU) == layer.SOLVE_ROWS < layer.CUDA_SOLVE_ROWS


def test_the_error_is_measured_on_the_undamped_hessian() -> None:
    weight, hessian = seen()
    found = rounded(weight, hessian, settings())
    everything = slice(0, ROWS)
    error = solver_oracle.output_error(weight, found.dequantize_rows(everything), hessian)
    energy = solver_oracle.output_error(weight, weight * 0, hessian)
    torch.testing.assert_close(found.error.double(), error, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found.energy.double(), energy, rtol=1e-4, atol=1e-6)
    part = slice(3, 7)
    assert found.relative_error(part) == pytest.approx(
        float(error[part].sum() / energy[part].sum()), rel=1e-3
    )


def explicit_sums(weight: Tensor, hessian: Tensor, matrix: RoundedMatrix) -> tuple[Tensor, Tensor]:
    """Squared output error and squared output of each row by the explicit formula, in fp64."""
    stored = matrix.dequantize_rows(slice(0, len(weight)))
    error = solver_oracle.output_error(weight, stored, hessian)
    return error, solver_oracle.output_error(weight, weight * 0, hessian)


@settings_of_hypothesis(max_examples=30, derandomize=True, deadline=None, database=None)
@given(
    seed=st.integers(0, 10_000),
    bits=st.sampled_from([2, 3, 4, 8]),
    group_size=st.sampled_from([16, 32, 64, -1]),
    sym=st.booleans(),
    damp_percent=st.sampled_from([0.001, 0.01, 0.05]),
)
def test_the_errors_of_the_solver_add_up_to_the_explicit_error(
    seed: int, bits: int, group_size: int, sym: bool, damp_percent: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    mixed = 0.05 * torch.randn(192, 192, generator=generator) + torch.eye(192)
    inputs = torch.randn(800, 192, generator=generator) @ mixed
    inputs[:, ::50] = 0
    weight, hessian = torch.randn(24, 192, generator=generator), inputs.T @ inputs
    weight[5] = 0
    changes = {"bits": bits, "group_size": group_size, "sym": sym, "damp_percent": damp_percent}
    matrix = rounded(weight, hessian, settings(**changes))
    error, energy = explicit_sums(weight, hessian, matrix)
    torch.testing.assert_close(matrix.error, error, rtol=5e-6, atol=0)
    everything = slice(0, 24)
    assert matrix.relative_error(everything) == pytest.approx(
        float(error.sum() / energy.sum()), rel=1e-6
    )
    assert matrix.loss(everything) == pytest.approx(mean_row_loss(error, energy), rel=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1e-4, 1e4])
def test_the_error_of_weights_of_any_size_is_measured(size: float) -> None:
    weight, hessian = seen()
    weight[::2] *= size
    matrix = rounded(weight, hessian, settings())
    error, _ = explicit_sums(weight, hessian, matrix)
    torch.testing.assert_close(matrix.error, error, rtol=1e-3, atol=0)


def test_the_error_of_a_fallback_is_the_explicit_one() -> None:
    weight, hessian = hopeless()
    matrix, factor = round_layer(weight, hessian, ProcessGroup(), settings(max_fallbacks=1))
    error, _ = explicit_sums(weight, hessian, matrix)
    assert factor.rescue == FALLBACK
    torch.testing.assert_close(matrix.error, error.clamp(min=0), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("sym", [True, False])
def test_packed_rows_stand_for_the_values(bits: int, sym: bool) -> None:
    found = rounded(*seen(96), settings(bits=bits, sym=sym))
    for part in (slice(0, 32), slice(32, 96)):
        plain = dequantize_gptq(found.pack_rows(part), bits=bits, zero_offset=1)
        assert torch.equal(plain, found.dequantize_rows(part))


def test_a_dead_layer_has_no_error() -> None:
    found = rounded(seen()[0], torch.zeros(COLS, COLS), settings())
    assert found.relative_error(slice(0, ROWS)) == 0


def hopeless() -> tuple[Tensor, Tensor]:
    """No damping helps, but the diagonal makes sense."""
    return seen()[0], torch.full((COLS, COLS), 1000.0).fill_diagonal_(1.0)


def test_a_hopeless_hessian_is_refused() -> None:
    with pytest.raises(NotPositiveDefinite, match="of 32 columns has no Cholesky factor"):
        rounded(*hopeless(), settings(max_fallbacks=0))


def test_a_hopeless_hessian_falls_back_to_rounding_to_nearest_where_that_is_allowed() -> None:
    weight, hessian = hopeless()
    found, factor = round_layer(weight, hessian, ProcessGroup(), settings(max_fallbacks=1))
    assert factor.rescue == FALLBACK
    assert torch.equal(found.codes, round_to_nearest(weight, found.grid))


def test_where_not_even_the_diagonal_makes_sense_there_is_no_way() -> None:
    weight, hessian = seen()
    hessian[3, 3] = float("nan")
    with pytest.raises(NotPositiveDefinite, match="of 32 columns has no Cholesky factor"):
        rounded(weight, hessian, settings(max_fallbacks=1))
