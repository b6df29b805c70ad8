"""Moments are sums over tokens, whatever the panels and the batches."""

from __future__ import annotations

import pytest
import torch

from camelpress.quantize.solver import hessian
from camelpress.quantize.solver.hessian import Moments

CPU = torch.device("cpu")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("panel", [1, 5, 16, 20, 512])
def test_both_sums_are_those_of_all_tokens(panel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hessian, "PANEL", panel)
    inputs, wanted = random(50, 20), random(50, 7, seed=1)
    moments = Moments(20, 7, CPU)
    for part in (slice(0, 13), slice(13, 14), slice(14, 50)):
        moments.add(inputs[part], wanted[part])
    whole = moments.whole_hessian()
    torch.testing.assert_close(whole, inputs.T @ inputs, rtol=1e-5, atol=1e-4)
    assert torch.equal(whole, whole.T)
    torch.testing.assert_close(moments.cross, wanted.T @ inputs, rtol=1e-5, atol=1e-4)


def test_no_tokens_add_nothing() -> None:
    moments = Moments(4, 3, CPU)
    moments.add(random(0, 4), random(0, 3))
    assert not bool(moments.whole_hessian().any())
    assert not bool(moments.cross.any())


def test_16_bit_activations_are_summed_in_fp32() -> None:
    inputs, wanted = random(300, 8).bfloat16(), random(300, 2).bfloat16()
    moments = Moments(8, 2, CPU)
    moments.add(inputs, wanted)
    expected = inputs.double().T @ inputs.double()
    torch.testing.assert_close(moments.whole_hessian().double(), expected, rtol=1e-5, atol=1e-3)


def test_what_is_wanted_may_be_left_out_and_forgotten() -> None:
    inputs, wanted = random(40, 6), random(40, 5, seed=1)
    moments = Moments(6, 5, CPU)
    moments.add(inputs[:25], wanted[:25])
    moments.forget_cross()
    part = moments.fresh()
    assert part.cross.shape == (0, 6)
    part.add(inputs[25:])
    moments.include(part)
    torch.testing.assert_close(moments.whole_hessian(), inputs.T @ inputs, rtol=1e-5, atol=1e-4)


def test_moments_add_up() -> None:
    inputs, wanted = random(40, 6), random(40, 5, seed=1)
    parts = []
    for part in (slice(0, 25), slice(25, 40)):
        moments = Moments(6, 5, CPU)
        moments.add(inputs[part], wanted[part])
        parts.append(moments)
    total = Moments(6, 5, CPU)
    for each in parts:
        total.include(each)
    torch.testing.assert_close(total.whole_hessian(), inputs.T @ inputs, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(total.cross, wanted.T @ inputs, rtol=1e-5, atol=1e-4)
