"""Intervals of shares lie between 0 and 1, have a width, and hold the truth often enough."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

import benches
from camelpress.validate.statistics.binomial import (
    binomial_interval,
    effective_trials,
    max_unseen_share,
)
from camelpress.validate.statistics.clustered import clustered_share, effective_clusters


@pytest.mark.parametrize(("hits", "trials"), [(30, 30), (0, 30), (29, 30), (15, 30), (1, 1)])
def test_one_token_a_cluster_has_the_exact_interval(hits: int, trials: int) -> None:
    values = torch.tensor([1.0] * hits + [0.0] * (trials - hits))
    expected = binomtest(hits, trials).proportion_ci(0.95, method="exact")
    assert binomial_interval(hits / trials, float(trials)) == pytest.approx(
        (expected.low, expected.high)
    )
    if trials > 1:
        estimate = clustered_share(values, torch.arange(trials))
        assert estimate.interval == pytest.approx((expected.low, expected.high))


def test_thirty_of_thirty_are_not_certain() -> None:
    estimate = clustered_share(torch.ones(30), torch.arange(30))
    assert (estimate.low, estimate.high) == pytest.approx((0.8843, 1.0), abs=1e-4)


def test_where_nothing_differs_a_cluster_is_one_trial() -> None:
    """Nothing tells then whether its tokens are independent."""
    cluster = torch.arange(20).repeat_interleave(500)
    estimate = clustered_share(torch.ones(10_000), cluster)
    assert estimate.low == pytest.approx(1 - max_unseen_share(20))
    assert estimate.low == pytest.approx(0.025 ** (1 / 20))


def test_tokens_that_only_repeat_their_cluster_narrow_nothing() -> None:
    draw = np.random.default_rng(1)
    outcome = torch.from_numpy((draw.random(40) < 0.8).astype(float))
    cluster = torch.arange(40)
    once = clustered_share(outcome, cluster)
    often = clustered_share(outcome.repeat_interleave(300), cluster.repeat_interleave(300))
    assert often.interval == pytest.approx(once.interval)


def test_independent_tokens_are_worth_nearly_as_many_trials() -> None:
    draw = np.random.default_rng(1)
    sizes = np.full(300, 100.0)
    trials = effective_trials(draw.binomial(100, 0.9, 300).astype(float), sizes)
    assert 20_000 < trials <= 30_000


SIZES = st.lists(st.integers(1, 400), min_size=2, max_size=60)


@given(SIZES, st.integers(0, 2**31), st.sampled_from([0.0, 0.5, 0.97, 0.999, 1.0]))
def test_an_interval_is_within_bounds_and_has_a_width(
    sizes: list[int], seed: int, share: float
) -> None:
    draw = np.random.default_rng(seed)
    cluster = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    fifths = torch.from_numpy(draw.binomial(5, share, len(cluster)) / 5)
    estimate = clustered_share(fifths, cluster)
    assert 0 <= estimate.low <= estimate.mean <= estimate.high <= 1
    assert estimate.high - estimate.low > 1e-5
    sums = torch.zeros(len(sizes), dtype=torch.float64).index_add_(0, cluster, fifths)
    trials = effective_trials(sums.numpy(), np.array(sizes, dtype=float))
    assert effective_clusters(cluster) - 1e-6 <= trials <= sum(sizes) + 1e-6


def test_one_cluster_has_no_interval() -> None:
    assert clustered_share(torch.ones(30), torch.zeros(30, dtype=torch.int64)).interval is None


@pytest.mark.parametrize(
    ("sizes", "expected"), [([7, 7, 7], 3.0), ([300] + [1] * 20, 1.138), ([5], 1.0)]
)
def test_clusters_of_other_sizes_count_for_fewer(sizes: list[int], expected: float) -> None:
    cluster = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    assert effective_clusters(cluster) == pytest.approx(expected, rel=1e-3)


COVERAGE = benches.part("validate.coverage")
DESIGNS = [
    COVERAGE.Design(correlation, uneven=uneven, copies=copies)
    for correlation, uneven, copies in product((0.0, 0.2, 1.0), (False, True), (False, True))
]


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize(("pieces", "share"), [(3, 0.9), (20, 0.97), (100, 0.999)])
def test_intervals_hold_the_true_share_at_least_nine_times_in_ten(
    pieces: int, share: float, design: Any
) -> None:
    """The worst design of `benchmarks.validate.coverage` holds it in 92 %; the draws are fixed."""
    found = COVERAGE.coverage(pieces, share, design, runs=100)
    assert found.held >= 0.90
    assert found.above <= 0.08  # a low end above the truth is what passes a bad model


def test_the_usual_interval_would_promise_too_much() -> None:
    design = COVERAGE.Design(0.5)
    assert COVERAGE.coverage(20, 0.97, design, runs=100, method=COVERAGE.usual).held < 0.75


@pytest.mark.parametrize("clusters", [1, 10, 300])
def test_what_none_of_so_many_shows_is_the_end_of_the_exact_interval(clusters: int) -> None:
    exact = binomtest(0, clusters).proportion_ci(0.95, method="exact").high
    assert max_unseen_share(clusters) == pytest.approx(exact)
