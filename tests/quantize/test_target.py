"""The weight to round is the least-squares weight for what the 16-bit model gives."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import solver_oracle
from camelpress.quantize.gptq import activation_order, factorize
from camelpress.quantize.target import reader_step, writer_step

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

    def aimed(self) -> Tensor:
        order = activation_order(self.hessian.diagonal(), group_size=4)
        factor = factorize(self.hessian, order, damp_percent=DAMP)
        missing = self.wanted if self.writes else self.wanted - self.inputs
        cross = missing.T @ self.inputs
        if self.writes:
            return self.weight + writer_step(self.weight, cross, factor)
        return self.weight + self.weight @ reader_step(cross, factor)

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
def test_the_inputs_are_left_as_they_were(writes: bool) -> None:
    drawn = case(writes, 5)
    before = [tensor.clone() for tensor in drawn[:3]]
    drawn.aimed()
    assert all(map(torch.equal, before, drawn[:3]))
