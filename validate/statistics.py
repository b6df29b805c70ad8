"""Means and quantiles with honest intervals: tokens of one sequence are not independent.

Sequences are. What is known of the spread between them is all that an interval is made of.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from numpy import ndarray
from scipy.special import stdtrit
from torch import Tensor

CONFIDENCE = 0.95
TAIL = (1 - CONFIDENCE) / 2
RESAMPLES = 1999
AT_ONCE = 2**22  # weights held while clusters are drawn again
SEED = 20_240_711


@dataclass(frozen=True)
class Estimate:
    """A figure over tokens and its 95 % interval, from the spread between clusters."""

    mean: float
    low: float
    high: float
    n: int
    clusters: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval, or None where something does not bound it."""
        bounded = self.clusters > 1 and isfinite(self.low) and isfinite(self.high)
        return (self.low, self.high) if bounded else None


def clustered_mean(values: Float[Tensor, " tokens"], cluster: Int64[Tensor, " tokens"]) -> Estimate:
    """The mean of values whose errors go together within a cluster.

    The interval is mean ± t * se with se² = C/(C-1) * sum over clusters of (sum of (x - mean))²
    / n², and Student's t with C-1 degrees of freedom. One cluster alone says nothing of the
    spread: the interval is infinite.

    Args:
        values: one per token.
        cluster: which independent piece of text each belongs to.
    Source:
        Miller 2024, arXiv:2411.00640, section 2.2 (clustered standard errors).
    """
    return _estimate(*_by_cluster(values, cluster))


def bootstrap_mean(values: Float[Tensor, " tokens"], cluster: Int64[Tensor, " tokens"]) -> Estimate:
    """The mean of values with heavy tails, such as divergences; clusters are drawn again.

    For each of `RESAMPLES` draws of C clusters with replacement, t = (mean' - mean) / se' is
    taken; the interval is mean - t(97.5 %) * se to mean - t(2.5 %) * se. On no side is it shorter
    than that of `clustered_mean`: of few clusters, a draw can hold one alone and show no spread.
    The draws are the same in each run.

    Args:
        values: one per token.
        cluster: which independent piece of text each belongs to.
    Source:
        Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 12.5 (bootstrap-t);
        of clusters as in Cameron, Gelbach and Miller 2008, doi:10.1162/rest.90.3.414.
    """
    sums, sizes = _by_cluster(values, cluster)
    estimate = _estimate(sums, sizes)
    if estimate.low == estimate.high or estimate.clusters < 2:
        return estimate
    error = (estimate.high - estimate.mean) / _student(len(sums))
    draw, chances = np.random.default_rng(SEED), np.full(len(sums), 1 / len(sums))
    found = []
    for start in range(0, RESAMPLES, step := max(1, AT_ONCE // len(sums))):
        times = draw.multinomial(len(sums), chances, size=min(step, RESAMPLES - start))
        means, errors = _mean_and_error(times.astype(float), sums, sizes)
        shown = errors > 1e-9 * error
        found.append((means[shown] - estimate.mean) / errors[shown])
    below, above = np.quantile(np.concatenate([[0.0], *found]), [TAIL, 1 - TAIL])
    return Estimate(
        estimate.mean,
        min(estimate.low, estimate.mean - float(above) * error),
        max(estimate.high, estimate.mean - float(below) * error),
        estimate.n,
        estimate.clusters,
    )


def clustered_quantile(
    values: Float[Tensor, " tokens"], cluster: Int64[Tensor, " tokens"], share: float
) -> Estimate:
    """The value that a share of all values does not exceed.

    The share of values up to it is a mean with an interval of its own; the quantiles at its ends
    are the interval. Where that would be beyond the largest value, nothing bounds it.

    Args:
        values: one per token.
        cluster: which independent piece of text each belongs to.
        share: in (0, 1).
    Source:
        Woodruff 1952, doi:10.1080/01621459.1952.10483443, with clustered standard errors.
    """
    ordered = values.double().sort().values
    last = len(ordered) - 1
    quantile = float(ordered[min(last, int(len(ordered) * share))])
    inside = clustered_mean((values.double() <= quantile).double(), cluster)
    reach = max(inside.high - inside.mean, 1 / len(ordered))
    if inside.clusters < 2:
        return Estimate(quantile, -inf, inf, inside.n, inside.clusters)
    low, high = (int(len(ordered) * (share + side * reach)) for side in (-1, 1))
    return Estimate(
        quantile,
        float(ordered[max(0, low)]),
        float(ordered[high]) if high <= last else inf,
        inside.n,
        inside.clusters,
    )


def _estimate(
    sums: Float64[ndarray, " clusters"], sizes: Float64[ndarray, " clusters"]
) -> Estimate:
    """The mean and Student's interval, from the sum and the number of values of each cluster."""
    means, errors = _mean_and_error(np.ones((1, len(sums))), sums, sizes)
    mean, clusters = float(means[0]), len(sums)
    reach = _student(clusters) * float(errors[0]) if clusters > 1 else inf
    return Estimate(mean, mean - reach, mean + reach, int(sizes.sum()), clusters)


def _student(clusters: int) -> float:
    """How many standard errors the interval reaches to either side."""
    return float(stdtrit(clusters - 1, 1 - TAIL))


def _by_cluster(
    values: Float[Tensor, " tokens"], cluster: Int64[Tensor, " tokens"]
) -> tuple[Float64[ndarray, " clusters"], Float64[ndarray, " clusters"]]:
    """Sum and number of the values of each cluster."""
    names, members = cluster.unique(return_inverse=True)
    sums = torch.zeros(len(names), dtype=torch.float64).index_add_(0, members, values.double())
    return sums.numpy(), torch.bincount(members).double().numpy()


def _mean_and_error(
    times: Float64[ndarray, "samples clusters"],
    sums: Float64[ndarray, " clusters"],
    sizes: Float64[ndarray, " clusters"],
) -> tuple[Float64[ndarray, " samples"], Float64[ndarray, " samples"]]:
    """Mean and clustered standard error of samples that hold each cluster so many times."""
    n = times @ sizes
    means = times @ sums / n
    squares = (times * (sums - means[:, None] * sizes) ** 2).sum(axis=1)
    clusters = times.sum(axis=1)
    return means, np.sqrt(squares * clusters / np.maximum(clusters - 1, 1)) / n
