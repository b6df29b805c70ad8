"""Intervals hold what they promise, also where tokens of one text resemble each other."""

from __future__ import annotations

import math
import random
from statistics import NormalDist, fmean, stdev

import pytest
import torch
from scipy.stats import ttest_1samp
from torch import Tensor

from camelpress.validate.statistics import CONFIDENCE, Estimate, clustered_mean

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


def test_equal_values_have_an_interval_of_no_width() -> None:
    estimate = clustered_mean(torch.ones(6), torch.tensor([0, 0, 1, 1, 2, 2]))
    assert estimate.interval == (1.0, 1.0)


def test_means_of_many_small_numbers_do_not_drift() -> None:
    values = torch.full((1_000_000,), 0.1)
    estimate = clustered_mean(values, torch.arange(1_000_000) % 10)
    assert estimate.mean == pytest.approx(float(values[0]), rel=1e-12)


def test_an_estimate_of_two_clusters_has_its_interval() -> None:
    assert Estimate(1.0, 0.5, 1.5, 10, 2).interval == (0.5, 1.5)
