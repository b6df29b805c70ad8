"""Moments are sums over tokens, whatever the panels and the batches."""

from __future__ import annotations

import pytest
import torch

from camelpress.quantize.solver import hessian
from camelpress.quantize.solver.hessian import HessianAccumulator

CPU = torch.device("cpu")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("panel", [1, 5, 16, 20, 512])
def test_both_sums_are_those_of_all_tokens(panel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hessian, "PANEL_COLUMNS", panel)
    inputs, wanted = random(50, 20), random(50, 7, seed=1)
    moments = HessianAccumulator(20, 7, CPU)
    for part in (slice(0, 13), slice(13, 14), slice(14, 50)):
        moments.add_batch(inputs[part], wanted[part])
    whole = moments.full_hessian()
    torch.testing.assert_close(whole, inputs.T @ inputs, rtol=1e-5, atol=1e-4)
    assert torch.equal(whole, whole.T)
    torch.testing.assert_close(moments.cross_moment, wanted.T @ inputs, rtol=1e-5, atol=1e-4)


def test_no_tokens_add_nothing() -> None:
    moments = HessianAccumulator(4, 3, CPU)
    moments.add_batch(random(0, 4), random(0, 3))
    assert not bool(moments.full_hessian().any())
    assert not bool(moments.cross_moment.any())


def test_16_bit_activations_are_summed_in_fp32() -> None:
    inputs, wanted = random(300, 8).bfloat16(), random(300, 2).bfloat16()
    moments = HessianAccumulator(8, 2, CPU)
    moments.add_batch(inputs, wanted)
    expected = inputs.double().T @ inputs.double()
    torch.testing.assert_close(moments.full_hessian().double(), expected, rtol=1e-5, atol=1e-3)


def test_what_is_wanted_may_be_left_out_and_forgotten() -> None:
    inputs, wanted = random(40, 6), random(40, 5, seed=1)
    moments = HessianAccumulator(6, 5, CPU)
    moments.add_batch(inputs[:25], wanted[:25])
    moments.drop_cross_moment()
    part = moments.zeros_like()
    assert part.cross_moment.shape == (0, 6)
    part.add_batch(inputs[25:])
    moments.merge(part)
    torch.testing.assert_close(moments.full_hessian(), inputs.T @ inputs, rtol=1e-5, atol=1e-4)


def test_moments_add_up() -> None:
    inputs, wanted = random(40, 6), random(40, 5, seed=1)
    parts = []
    for part in (slice(0, 25), slice(25, 40)):
        moments = HessianAccumulator(6, 5, CPU)
        moments.add_batch(inputs[part], wanted[part])
        parts.append(moments)
    total = HessianAccumulator(6, 5, CPU)
    for each in parts:
        total.merge(each)
    torch.testing.assert_close(total.full_hessian(), inputs.T @ inputs, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(total.cross_moment, wanted.T @ inputs, rtol=1e-5, atol=1e-4)
