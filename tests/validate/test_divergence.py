"""Divergences against sums in fp64 that know no shortcut, and what a store may lose of them."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from camelpress.validate.scoring.divergence import compare_log_probs, kl_divergences, top_k_ids
from camelpress.validate.store.top_k_log_probs import (
    TopKLogProbs,
    compare_with_top_k,
    truncate_to_top_k,
)

VOCABULARY = 60


def logits(seed: int, scale: float, rows: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, VOCABULARY, generator=generator)


def pair(seed: int, scale: float, noise: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of a reference, and of a candidate near it."""
    reference = logits(seed, scale)
    candidate = reference + noise * logits(seed + 1, 1.0)
    return reference.log_softmax(dim=-1), candidate.log_softmax(dim=-1)


def slow_kl(left: Tensor, right: Tensor) -> list[float]:
    """KL(left || right) of each row, term by term in fp64."""
    told = []
    for some, other in zip(left.double().tolist(), right.double().tolist(), strict=True):
        total, rest = (log(sum(map(exp, row))) for row in (some, other))
        told.append(
            sum(exp(p - total) * (p - total - q + rest) for p, q in zip(some, other, strict=True))
        )
    return told


def ranked(row: Tensor) -> list[int]:
    """Tokens, the likeliest first."""
    values = row.tolist()
    return sorted(range(len(values)), key=lambda token: -values[token])


seeds = st.integers(0, 2**31)
scales, noises = st.floats(0.1, 6), st.floats(1e-3, 4)


@given(seeds, scales, noises)
@settings(max_examples=20, deadline=None)
def test_figures_are_those_of_sums_without_shortcuts(seed: int, scale: float, noise: float) -> None:
    reference, candidate = pair(seed, scale, noise)
    targets = torch.arange(len(reference))
    told = compare_log_probs(reference, candidate, targets)
    torch.testing.assert_close(
        told.kl.tolist(), slow_kl(reference, candidate), rtol=1e-3, atol=1e-7
    )
    torch.testing.assert_close(
        told.kl_reverse.tolist(), slow_kl(candidate, reference), rtol=1e-3, atol=1e-7
    )
    for row in range(len(reference)):
        first, second = ranked(reference[row]), ranked(candidate[row])
        assert bool(told.same_top1[row]) == (first[0] == second[0])
        assert float(told.top5_overlap[row]) == pytest.approx(len({*first[:5]} & {*second[:5]}) / 5)
        assert float(told.confidence[row]) == pytest.approx(float(reference[row].max().exp()))
        assert float(told.reference_nll[row]) == -float(reference[row, row])
        assert float(told.candidate_nll[row]) == -float(candidate[row, row])


@given(seeds, scales, noises)
@settings(max_examples=20, deadline=None)
def test_no_term_is_negative(seed: int, scale: float, noise: float) -> None:
    reference, candidate = (each.flatten()[:, None] for each in pair(seed, scale, noise))
    for some, other in ((reference, candidate), (candidate, reference)):
        told, back = kl_divergences(some, other)
        ratio = (other - some).double().squeeze(1)
        p, q = some.double().exp().squeeze(1), other.double().exp().squeeze(1)
        exact = q - p * (1 + ratio)
        assert float(told.min()) >= 0
        torch.testing.assert_close(told.double(), exact, rtol=1e-4, atol=1e-9)
        assert torch.equal(back, kl_divergences(other, some)[0])


@given(seeds, st.integers(1, 700), st.integers(1, 7))
@settings(max_examples=30, deadline=None)
def test_the_largest_are_found_in_groups(seed: int, width: int, count: int) -> None:
    values = torch.randn(3, max(width, count), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(top_k_ids(values, count), values.topk(count).indices)


def test_small_divergences_keep_their_digits() -> None:
    reference, candidate = pair(0, 3.0, 1e-4)
    wide = slow_kl(logits(0, 3.0), logits(0, 3.0).double() + 1e-4 * logits(1, 1.0).double())
    told = compare_log_probs(
        reference, candidate, torch.zeros(len(reference), dtype=torch.int64)
    ).kl
    assert 0 < max(wide) < 1e-7
    torch.testing.assert_close(told.double(), torch.tensor(wide).double(), rtol=0.05, atol=0)


@pytest.mark.parametrize("huge", [1e4, 1e30, 3e38])
def test_figures_stay_numbers_beyond_any_scale(huge: float) -> None:
    reference = torch.zeros(2, VOCABULARY).log_softmax(dim=-1)
    candidate = torch.zeros(2, VOCABULARY)
    candidate[:, 3] = huge
    for some in ((reference, candidate.log_softmax(dim=-1)), (candidate.log_softmax(dim=-1),) * 2):
        told = compare_log_probs(*some, torch.zeros(2, dtype=torch.int64))
        assert bool(told.kl.isfinite().all()) and bool(told.kl_reverse.isfinite().all())


def kept(reference: Tensor, top_k: int, samples: int = 16, places: float = 0.3) -> TopKLogProbs:
    rows = len(reference)
    return truncate_to_top_k(
        reference,
        torch.arange(rows),
        top_k=top_k,
        samples=samples,
        offsets=torch.full((rows,), places, dtype=torch.float64),
    )


@given(seeds, scales, noises)
@settings(max_examples=15, deadline=None)
def test_a_store_of_everything_loses_nothing(seed: int, scale: float, noise: float) -> None:
    reference, candidate = pair(seed, scale, noise)
    targets = torch.arange(len(reference))
    told = compare_with_top_k(kept(reference, VOCABULARY), candidate, targets)
    exact = compare_log_probs(reference, candidate, targets)
    for name, found in told.metrics._asdict().items():
        torch.testing.assert_close(found, getattr(exact, name), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(told.kl_lower, exact.kl, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(told.kl_upper, exact.kl, rtol=1e-4, atol=1e-6)


@given(seeds, scales, noises, st.integers(5, VOCABULARY - 1))
@settings(max_examples=40, deadline=None)
def test_the_divergence_lies_within_the_bounds(
    seed: int, scale: float, noise: float, top_k: int
) -> None:
    reference, candidate = pair(seed, scale, noise)
    told = compare_with_top_k(kept(reference, top_k), candidate, torch.arange(len(reference)))
    exact = compare_log_probs(reference, candidate, torch.arange(len(reference))).kl
    slack = 1e-4 * exact + 1e-6
    assert bool((told.kl_lower <= exact + slack).all())
    assert bool((told.kl_upper >= exact - slack).all())
    assert bool((told.metrics.kl >= -1e-6).all())


@pytest.mark.parametrize("noise", [0.05, 0.5])
def test_the_estimate_is_right_on_average(noise: float) -> None:
    reference, candidate = pair(5, 2.0, noise)
    exact = compare_log_probs(reference, candidate, torch.arange(len(reference)))
    draws = torch.linspace(0, 1, 201, dtype=torch.float64)[:-1].tolist()
    found = [
        compare_with_top_k(
            kept(reference, 8, 4, place), candidate, torch.arange(len(reference))
        ).metrics
        for place in draws
    ]
    for name in ("kl", "kl_reverse"):
        mean = torch.stack([getattr(each, name) for each in found]).double().mean(dim=0)
        wrong = 5e-3 if name == "kl" else 2e-2
        torch.testing.assert_close(mean, getattr(exact, name).double(), rtol=wrong, atol=1e-6)


def test_drawn_tokens_are_among_the_others_each_by_its_probability() -> None:
    reference = logits(3, 2.0).log_softmax(dim=-1)
    counts = torch.zeros(len(reference), VOCABULARY)
    draws = torch.linspace(0, 1, 201, dtype=torch.float64)[:-1].tolist()
    for place in draws:
        some = kept(reference, 8, 10, place)
        assert not bool((some.drawn[:, :, None] == some.ids[:, None, :]).any())
        assert torch.equal(some.drawn_log_p, reference.gather(1, some.drawn))
        counts.scatter_add_(1, some.drawn, torch.ones_like(some.drawn_log_p))
    others = reference.exp().scatter(1, reference.topk(8).indices, 0.0)
    expected = others / others.sum(dim=-1, keepdim=True)
    torch.testing.assert_close(counts / (10 * len(draws)), expected, rtol=0, atol=2e-3)


def test_a_remainder_without_mass_costs_nothing() -> None:
    reference = torch.full((1, VOCABULARY), -500.0)
    reference[:, :5] = 0.0
    reference = reference.log_softmax(dim=-1)
    candidate = logits(1, 1.0, 1).log_softmax(dim=-1)
    told = compare_with_top_k(kept(reference, 5), candidate, torch.tensor([0]))
    exact = compare_log_probs(reference, candidate, torch.tensor([0]))
    torch.testing.assert_close(told.metrics.kl, exact.kl)
    assert float(told.metrics.kl_reverse) > 100 * float(told.metrics.kl)
    assert bool(torch.stack(told[1:]).isfinite().all())
