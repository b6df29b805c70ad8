"""A matrix is rounded row by row, whoever takes which rows, and its error is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import solver_oracle
from camelpress.core.errors import NotPositiveDefinite
from camelpress.core.packed import dequantize
from camelpress.quantize import layer
from camelpress.quantize.gptq import FALLBACK, activation_order, factorize, solve
from camelpress.quantize.grid import nearest
from camelpress.quantize.hessian import Moments
from camelpress.quantize.kernel import kernel
from camelpress.quantize.layer import Rounded, round_layer
from camelpress.quantize.refine import refine
from camelpress.quantize.settings import Quantize
from camelpress.quantize.target import reader_step, writer_step
from camelpress.quantize.team import Team

CPU = torch.device("cpu")
ROWS, COLS = 40, 32


def seen(rows: int = ROWS, *, writes: bool = False, seed: int = 0) -> tuple[Tensor, Moments]:
    """A weight, and moments of inputs with something missing."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(100, COLS, generator=generator).cumsum(dim=1)
    missing = 0.1 * torch.randn(100, rows if writes else COLS, generator=generator)
    moments = Moments(COLS, missing.shape[1], CPU)
    moments.add(inputs, missing)
    return torch.randn(rows, COLS, generator=generator), moments


def settings(**changes: Any) -> Quantize:
    values = {"group_size": 16, "correction": 0.7, "sweeps": 2, "damp_percent": 0.02}
    return Quantize(**(values | changes))


def rounded(weight: Tensor, moments: Moments, wanted: Quantize, *, writes: bool) -> Rounded:
    return round_layer(weight, moments, Team(), wanted, writes=writes)[0]


@pytest.mark.parametrize("writes", [True, False])
def test_without_correction_the_weight_itself_is_rounded(writes: bool) -> None:
    weight, moments = seen(writes=writes)
    moments.cross.zero_()
    found = rounded(weight, moments, settings(correction=0.0), writes=writes)
    other = seen(writes=writes)[1]
    assert torch.equal(
        rounded(weight, other, settings(correction=0.0), writes=writes).solved.codes,
        found.solved.codes,
    )


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("writes", [True, False])
def test_a_layer_is_aimed_then_solved_then_refined(writes: bool, sym: bool) -> None:
    weight, moments = seen(writes=writes)
    wanted = settings(sym=sym, bits=3)
    hessian = moments.whole_hessian()
    order = activation_order(hessian.diagonal(), group_size=16)
    factor = factorize(hessian, order, damp_percent=0.02)
    if writes:
        target = weight + 0.7 * writer_step(weight, moments.cross, factor)
    else:
        target = weight + 0.7 * (weight @ reader_step(moments.cross, factor))
    solved = solve(target, factor, kernel(CPU), bits=3, group_size=16, sym=sym)
    expected = refine(target, factor, solved, kernel(CPU), sweeps=2)
    found = rounded(weight, moments, wanted, writes=writes).solved
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.grid.scales, expected.grid.scales)
    assert torch.equal(found.grid.zeros, expected.grid.zeros)


@pytest.mark.parametrize("writes", [True, False])
@pytest.mark.parametrize("height", [1, 8, 17, ROWS])
def test_the_height_of_a_block_makes_no_difference(
    writes: bool, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, moments = seen(writes=writes)
    whole = rounded(weight, moments, settings(), writes=writes)
    monkeypatch.setattr(layer, "ROWS", height)
    parts = rounded(weight, moments, settings(), writes=writes)
    agree = (parts.solved.codes == whole.solved.codes).float().mean()
    assert float(agree) > 0.99  # matrix products of other heights may round apart
    torch.testing.assert_close(parts.error, whole.error, rtol=0.05, atol=1e-3)
    torch.testing.assert_close(parts.energy, whole.energy, rtol=1e-4, atol=0)


def test_the_error_is_that_of_the_aim_on_the_undamped_hessian() -> None:
    weight, moments = seen()
    found = rounded(weight, moments, settings(correction=0.0), writes=False)
    hessian = moments.whole_hessian()
    everything = slice(0, ROWS)
    error = solver_oracle.output_error(weight, found.values(everything), hessian)
    energy = solver_oracle.output_error(weight, weight * 0, hessian)
    torch.testing.assert_close(found.error.double(), error, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found.energy.double(), energy, rtol=1e-4, atol=1e-6)
    part = slice(3, 7)
    assert found.relative_error(part) == pytest.approx(
        float(error[part].sum() / energy[part].sum()), rel=1e-3
    )


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("sym", [True, False])
def test_packed_rows_stand_for_the_values(bits: int, sym: bool) -> None:
    weight, moments = seen(96)
    found = rounded(weight, moments, settings(bits=bits, sym=sym), writes=False)
    for part in (slice(0, 32), slice(32, 96)):
        plain = dequantize(found.packed(part), bits=bits, zero_offset=1)
        assert torch.equal(plain, found.values(part))


def test_a_dead_layer_has_no_error() -> None:
    moments = Moments(COLS, COLS, CPU)
    moments.add(torch.zeros(4, COLS), torch.zeros(4, COLS))
    found = rounded(seen()[0], moments, settings(), writes=False)
    assert found.relative_error(slice(0, ROWS)) == 0


def hopeless() -> tuple[Tensor, Moments]:
    """No damping helps, but the diagonal makes sense."""
    weight, moments = seen()
    moments.hessian.fill_(1000.0).fill_diagonal_(1.0)
    return weight, moments


def test_a_hopeless_hessian_is_refused() -> None:
    with pytest.raises(NotPositiveDefinite, match="of 32 columns has no Cholesky factor"):
        rounded(*hopeless(), settings(max_fallbacks=0), writes=False)


def test_a_hopeless_hessian_falls_back_to_rounding_to_nearest_where_that_is_allowed() -> None:
    weight, moments = hopeless()
    wanted = settings(max_fallbacks=1, correction=0.0)
    found, factor = round_layer(weight, moments, Team(), wanted, writes=False)
    assert factor.rescue == FALLBACK
    assert torch.equal(found.solved.codes, nearest(weight, found.solved.grid))


def test_where_not_even_the_diagonal_makes_sense_there_is_no_way() -> None:
    weight, moments = seen()
    moments.hessian[3, 3] = float("nan")
    with pytest.raises(NotPositiveDefinite, match="of 32 columns has no Cholesky factor"):
        rounded(weight, moments, settings(max_fallbacks=1), writes=False)
