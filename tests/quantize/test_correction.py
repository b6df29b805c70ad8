"""The weight to round is the least-squares weight for what the 16-bit model gives."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import solver_oracle
from camelpress.core.errors import NotPositiveDefinite
from camelpress.quantize.solver import correction
from camelpress.quantize.solver.correction import correct_weight
from camelpress.quantize.solver.hessian import HessianAccumulator

DAMP = 0.01
FEW = settings(max_examples=30, derandomize=True, deadline=None, database=None)


class Case(NamedTuple):
    """What a layer sees and what it should give."""

    weight: Tensor  # [rows cols]
    inputs: Tensor  # [tokens cols], of the quantized model
    wanted: Tensor  # [tokens cols] inputs of the 16-bit model, or [tokens rows] what is missing
    writes: bool

    @property
    def hessian(self) -> Tensor:
        return self.inputs.T @ self.inputs

    @property
    def moments(self) -> HessianAccumulator:
        missing = self.wanted if self.writes else self.wanted - self.inputs
        moments = HessianAccumulator(self.inputs.shape[1], missing.shape[1], torch.device("cpu"))
        moments.add_batch(self.inputs, missing)
        return moments

    def aimed(self, *, strength: float = 1.0) -> Tensor:
        weight = self.weight.clone()
        correct_weight(
            weight, self.moments, strength=strength, damp_percent=DAMP, writes=self.writes
        )
        return weight

    def slowly(self) -> Tensor:
        """Least squares over tokens, pulled to the weight as the damping does; float64.

        Damping is a few more tokens, one a column, for which the weight gives what is wanted.
        """
        weight, inputs = self.weight.double(), self.inputs.double()
        damping = (solver_oracle.damped(self.hessian, DAMP) - self.hessian.double()).diagonal()
        pull = damping.sqrt().diag()
        outputs = self.wanted.double() if self.writes else self.wanted.double() @ weight.T
        rows = torch.linalg.lstsq(
            torch.cat([inputs, pull]), torch.cat([outputs, pull @ weight.T]), driver="gelsd"
        )
        return rows.solution.T


def case(writes: bool, seed: int, *, tokens: int = 60, cols: int = 16, rows: int = 5) -> Case:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(tokens, cols, generator=generator).cumsum(dim=1)
    weight = torch.randn(rows, cols, generator=generator)
    wanted = inputs @ weight.T if writes else inputs
    noise = torch.randn(wanted.shape, generator=generator)
    return Case(weight, inputs, wanted + 0.2 * noise, writes)


@FEW
@given(st.booleans(), st.integers(0, 10_000), st.sampled_from([10, 60, 200]))
def test_it_is_the_least_squares_weight(writes: bool, seed: int, tokens: int) -> None:
    drawn = case(writes, seed, tokens=tokens)
    torch.testing.assert_close(drawn.aimed().double(), drawn.slowly(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("writes", [True, False])
def test_it_comes_nearer_to_what_is_wanted(writes: bool) -> None:
    drawn = case(writes, 1)
    outputs = drawn.wanted if writes else drawn.wanted @ drawn.weight.T
    way = drawn.aimed() - drawn.weight
    errors = [
        float((drawn.inputs @ (drawn.weight + strength * way).T - outputs).square().sum())
        for strength in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("writes", [True, False])
def test_where_nothing_is_missing_the_weight_stays(writes: bool) -> None:
    drawn = case(writes, 3)
    reached = drawn.inputs @ drawn.weight.T if writes else drawn.inputs
    same = drawn._replace(wanted=reached).aimed()
    torch.testing.assert_close(same, drawn.weight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("writes", [True, False])
def test_columns_that_no_token_used_keep_their_weights(writes: bool) -> None:
    drawn = case(writes, 4)
    dead = [0, 5, 12, 13, 14, 15]
    drawn.inputs[:, dead] = 0
    found = drawn.aimed()
    torch.testing.assert_close(found[:, dead], drawn.weight[:, dead], rtol=1e-6, atol=0)
    assert not torch.equal(found, drawn.weight)


@pytest.mark.parametrize("writes", [True, False])
@pytest.mark.parametrize("height", [1, 3, 5])
def test_the_height_of_what_is_moved_at_a_time_makes_no_difference(
    writes: bool, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = case(writes, 5)
    expected = drawn.aimed(strength=0.3)
    monkeypatch.setattr(correction, "CORRECTION_ROWS", height)
    torch.testing.assert_close(drawn.aimed(strength=0.3), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("writes", [True, False])
def test_the_strength_is_how_far_the_weight_moves(writes: bool) -> None:
    drawn = case(writes, 6)
    whole = drawn.aimed() - drawn.weight
    torch.testing.assert_close(
        drawn.aimed(strength=0.3) - drawn.weight, 0.3 * whole, rtol=1e-3, atol=1e-5
    )
    assert torch.equal(drawn.aimed(strength=0.0), drawn.weight)


@pytest.mark.parametrize("writes", [True, False])
def test_sums_are_left_so_that_others_can_be_added(writes: bool) -> None:
    drawn = case(writes, 5)
    moments = drawn.moments
    correct_weight(drawn.weight.clone(), moments, strength=1.0, damp_percent=DAMP, writes=writes)
    moments.drop_cross_moment()
    moments.add_batch(drawn.inputs)
    expected = 2 * drawn.hessian
    torch.testing.assert_close(moments.full_hessian(), expected, rtol=1e-5, atol=1e-3)


def test_a_hopeless_hessian_is_refused() -> None:
    moments = case(True, 7).moments
    moments.hessian.fill_(1000.0).fill_diagonal_(1.0)
    with pytest.raises(NotPositiveDefinite, match="of 16 columns has no Cholesky factor"):
        correct_weight(case(True, 7).weight, moments, strength=1.0, damp_percent=DAMP, writes=True)
