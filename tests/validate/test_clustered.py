"""Intervals hold what they promise, also where tokens of one text resemble each other."""

from __future__ import annotations

import math
import random
from statistics import NormalDist, fmean, stdev
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, ttest_1samp
from torch import Tensor

from camelpress.validate.statistics.clustered import (
    CONFIDENCE,
    Estimate,
    bootstrap_mean,
    clustered_mean,
    clustered_quantile,
)

RUNS = 1000
CLUSTERS = 40
TRUE = 0.7


def data_set(draw: random.Random, *, shared: float) -> tuple[Tensor, Tensor]:
    """Clusters of 5 to 30 values around TRUE; `shared` is the spread between clusters."""
    values, cluster = [], []
    for number in range(CLUSTERS):
        centre = TRUE + shared * draw.gauss(0, 1)
        for _ in range(draw.randint(5, 30)):
            values.append(centre + draw.gauss(0, 1))
            cluster.append(number)
    return torch.tensor(values), torch.tensor(cluster)


def independent(values: Tensor) -> tuple[float, float]:
    """The interval that takes every value for independent."""
    told = values.tolist()
    reach = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2) * stdev(told) / math.sqrt(len(told))
    return fmean(told) - reach, fmean(told) + reach


@pytest.mark.parametrize("shared", [0.0, 0.5, 2.0])
def test_nineteen_intervals_in_twenty_hold_the_truth(shared: float) -> None:
    draw = random.Random(11)  # noqa: S311
    held = 0
    for _ in range(RUNS):
        estimate = clustered_mean(*data_set(draw, shared=shared))
        held += estimate.low <= TRUE <= estimate.high
    assert 0.92 <= held / RUNS <= 0.98


def test_taking_tokens_for_independent_would_promise_too_much() -> None:
    draw = random.Random(11)  # noqa: S311
    held = 0
    for _ in range(200):
        low, high = independent(data_set(draw, shared=2.0)[0])
        held += low <= TRUE <= high
    assert held / 200 < 0.6


def test_with_one_value_a_cluster_it_is_students_interval() -> None:
    values = torch.randn(25, generator=torch.Generator().manual_seed(0))
    estimate = clustered_mean(values, torch.arange(25))
    expected = ttest_1samp(values.double().numpy(), 0).confidence_interval(CONFIDENCE)
    assert estimate.low == pytest.approx(expected.low)
    assert estimate.high == pytest.approx(expected.high)
    assert (estimate.n, estimate.clusters) == (25, 25)


def test_the_interval_is_that_of_the_formula() -> None:
    values, cluster = [1.0, 2.0, 4.0, 8.0, 3.0], [0, 0, 1, 1, 2]
    mean = 18 / 5
    sums = [1 + 2 - 2 * mean, 4 + 8 - 2 * mean, 3 - mean]
    se = math.sqrt(3 / 2 * sum(part**2 for part in sums)) / 5
    estimate = clustered_mean(torch.tensor(values), torch.tensor(cluster))
    assert estimate.mean == pytest.approx(mean)
    assert estimate.high - mean == pytest.approx(4.302653 * se, rel=1e-5)  # t, 2 degrees, 97.5 %
    assert mean - estimate.low == pytest.approx(4.302653 * se, rel=1e-5)


def test_repeating_every_token_of_a_cluster_does_not_narrow_the_interval() -> None:
    values, cluster = data_set(random.Random(3), shared=1.0)  # noqa: S311
    once = clustered_mean(values, cluster)
    twice = clustered_mean(values.repeat_interleave(2), cluster.repeat_interleave(2))
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high))


def test_clusters_may_have_any_numbers_and_order() -> None:
    values, cluster = data_set(random.Random(3), shared=1.0)  # noqa: S311
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))
    left = clustered_mean(values, cluster)
    right = clustered_mean(values[order], 1000 - 7 * cluster[order])
    assert (right.low, right.high) == pytest.approx((left.low, left.high))
    assert right.clusters == left.clusters == CLUSTERS


def test_one_cluster_has_no_interval() -> None:
    estimate = clustered_mean(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4, 4, 4]))
    assert (estimate.mean, estimate.n, estimate.clusters) == (2.0, 3, 1)
    assert estimate.interval is None
    assert (estimate.low, estimate.high) == (-math.inf, math.inf)


@pytest.mark.parametrize("kind", [bootstrap_mean, clustered_mean])
@pytest.mark.parametrize("value", [0.0, 0.1, 1.0, -3.7])
def test_equal_values_leave_out_what_no_cluster_shows(kind: Any, value: float) -> None:
    estimate = kind(torch.full((7,), value), torch.tensor([0, 0, 1, 1, 2, 2, 2]))
    unseen = binomtest(0, 3).proportion_ci(0.95, method="exact").high
    mean = float(torch.tensor(value))
    assert estimate.interval == pytest.approx((mean - unseen, mean + unseen))


@pytest.mark.parametrize("kind", [bootstrap_mean, clustered_mean])
def test_equal_clusters_have_the_error_of_independent_values(kind: Any) -> None:
    """Whose means agree by chance, or because one is the other's copy."""
    values = torch.tensor([1.0, 2.0, 3.0, 4.0] * 3)
    estimate = kind(values, torch.arange(3).repeat_interleave(4))
    error = float(values.std()) / math.sqrt(12)
    assert estimate.high - estimate.mean == pytest.approx(4.302653 * error)
    assert estimate.mean - estimate.low == pytest.approx(4.302653 * error)


def test_a_percentile_of_equal_values_is_not_bounded() -> None:
    estimate = clustered_quantile(torch.zeros(3000), torch.arange(300).repeat_interleave(10), 0.5)
    assert (estimate.mean, estimate.interval) == (0.0, None)


def test_means_of_many_small_numbers_do_not_drift() -> None:
    values = torch.full((1_000_000,), 0.1)
    estimate = clustered_mean(values, torch.arange(1_000_000) % 10)
    assert estimate.mean == pytest.approx(float(values[0]), rel=1e-12)


def test_an_estimate_of_two_clusters_has_its_interval() -> None:
    assert Estimate(1.0, 0.5, 1.5, 10, 2).interval == (0.5, 1.5)


TAILED = math.exp(0.5 * (0.5**2 + 1.5**2))  # the mean of what `tailed` draws
SHIFT = math.sqrt(0.5**2 + 1.5**2)  # the spread of its logarithm


def tailed(draw: np.random.Generator, clusters: int) -> tuple[Tensor, Tensor]:
    """Divergences as they are: spread over decades, and of one text more alike than of two."""
    sizes = draw.integers(5, 30, clusters)
    centres = draw.lognormal(0, 0.5, clusters).repeat(sizes)
    values = torch.from_numpy(centres * draw.lognormal(0, 1.5, sizes.sum()))
    return values, torch.from_numpy(np.arange(clusters).repeat(sizes))


@pytest.mark.parametrize(("clusters", "least"), [(10, 0.88), (20, 0.90), (60, 0.91)])
def test_intervals_of_heavy_tails_hold_the_truth_more_often_than_the_plain_ones(
    clusters: int, least: float
) -> None:
    """The mean is moved by values that few samples hold; no interval knows them, this one more."""
    draw = np.random.default_rng(5)
    held = plain = 0
    for _ in range(400):
        values, cluster = tailed(draw, clusters)
        estimate = bootstrap_mean(values, cluster)
        held += estimate.low <= TAILED <= estimate.high
        estimate = clustered_mean(values, cluster)
        plain += estimate.low <= TAILED <= estimate.high
    assert least <= held / 400 <= 0.98
    assert held > plain


@pytest.mark.parametrize("shared", [0.0, 2.0])
def test_intervals_without_tails_hold_the_truth_too(shared: float) -> None:
    draw = random.Random(11)  # noqa: S311
    held = 0
    for _ in range(400):
        estimate = bootstrap_mean(*data_set(draw, shared=shared))
        held += estimate.low <= TRUE <= estimate.high
    assert 0.92 <= held / 400 <= 0.985


def test_drawing_again_gives_the_same_interval() -> None:
    values, cluster = tailed(np.random.default_rng(1), 30)
    assert bootstrap_mean(values, cluster) == bootstrap_mean(values, cluster)


def test_the_bootstrap_is_that_of_a_loop() -> None:
    """Whole clusters are drawn: sums and numbers of their values go together."""
    values, cluster = tailed(np.random.default_rng(1), 12)
    estimate, plain = bootstrap_mean(values, cluster), clustered_mean(values, cluster)
    error = (plain.high - plain.mean) / 2.200985  # t, 11 degrees, 97.5 %
    draw, told = np.random.default_rng(99), []
    members = [values[cluster == number] for number in range(12)]
    for _ in range(2000):
        drawn = [members[number] for number in draw.integers(0, 12, 12)]
        again = clustered_mean(
            torch.cat(drawn),
            torch.arange(12).repeat_interleave(torch.tensor([len(part) for part in drawn])),
        )
        told.append((again.mean - plain.mean) / ((again.high - again.mean) / 2.200985))
    below, above = np.quantile(told, [0.025, 0.975])
    assert estimate.high == pytest.approx(plain.mean - below * error, rel=0.1)
    assert estimate.low == pytest.approx(min(plain.low, plain.mean - above * error), rel=0.1)


def test_no_side_is_shorter_than_students() -> None:
    for seed in range(20):
        values, cluster = tailed(np.random.default_rng(seed), 2 + seed)
        wide, plain = bootstrap_mean(values, cluster), clustered_mean(values, cluster)
        assert wide.low <= plain.low and plain.high <= wide.high
        assert (wide.mean, wide.n, wide.clusters) == (plain.mean, plain.n, plain.clusters)


@pytest.mark.parametrize("kind", [bootstrap_mean, clustered_mean])
def test_one_cluster_alone_has_no_interval(kind: Any) -> None:
    assert kind(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4, 4, 4])).interval is None


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_nineteen_intervals_of_a_percentile_in_twenty_hold_the_truth(share: float) -> None:
    draw = np.random.default_rng(3)
    truth = math.exp(SHIFT * NormalDist().inv_cdf(share))
    held = 0
    for _ in range(500):
        estimate = clustered_quantile(*tailed(draw, 60), share)
        held += estimate.low <= truth <= estimate.high
    assert 0.92 <= held / 500 <= 0.985


def test_a_percentile_beyond_what_was_seen_has_no_interval() -> None:
    values, cluster = tailed(np.random.default_rng(1), 20)
    estimate = clustered_quantile(values, cluster, 0.999)
    assert estimate.mean == float(values.max())
    assert (estimate.high, estimate.interval) == (math.inf, None)
    alone = clustered_quantile(values, torch.zeros(len(values), dtype=torch.int64), 0.5)
    assert (alone.low, alone.high, alone.clusters) == (-math.inf, math.inf, 1)


def test_a_percentile_is_one_of_the_values() -> None:
    values = torch.arange(100).flip(0).float()
    estimate = clustered_quantile(values, torch.arange(100), 0.9)
    assert estimate.mean == 90.0
    assert estimate.low < 90 < estimate.high <= 99
