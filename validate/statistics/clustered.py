"""Means and quantiles with honest intervals: tokens of one sequence are not independent.

Sequences are. An interval comes from the spread between them, and is never narrower than
independent tokens would make it. No spread at all is no certainty: see `unseen_share`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from numpy import ndarray
from scipy.special import stdtrit
from torch import Tensor

from camelpress.validate.statistics import binomial
from camelpress.validate.statistics.binomial import (
    TAIL_PROBABILITY,
    binomial_interval,
    effective_trials,
    max_unseen_share,
)

CONFIDENCE = binomial.CONFIDENCE
RESAMPLES = 1999
MAX_RESAMPLE_WEIGHTS = 2**22  # weights held while clusters are drawn again
BOOTSTRAP_SEED = 20_240_711


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
    / n², and Student's t with C-1 degrees of freedom. The error of independent values is its least
    size. Equal values leave out what no cluster shows: so large a share of all clusters may be off
    by 1, which is a nat of a divergence and the whole of a score. One cluster alone says nothing
    of the spread: the interval is infinite.

    Args:
        values: one per token.
        cluster: the independent piece of text that each belongs to.
    Source:
        Miller 2024, arXiv:2411.00640, section 2.2 (clustered standard errors).
    """
    return _student_estimate(_sum_by_cluster(values, cluster))


def bootstrap_mean(values: Float[Tensor, " tokens"], cluster: Int64[Tensor, " tokens"]) -> Estimate:
    """The mean of values with heavy tails, such as divergences; clusters are drawn again.

    For each of `RESAMPLES` draws of C clusters with replacement, t = (mean' - mean) / se' is
    taken; the interval is mean - t(97.5 %) * se to mean - t(2.5 %) * se. On no side is it shorter
    than that of `clustered_mean`: of few clusters, a draw can hold one alone and show no spread.
    The draws are the same in each run.

    Args:
        values: one per token.
        cluster: the independent piece of text that each belongs to.
    Source:
        Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 12.5 (bootstrap-t);
        of clusters as in Cameron, Gelbach and Miller 2008, doi:10.1162/rest.90.3.414.
    """
    sample = _sum_by_cluster(values, cluster)
    estimate, error = _student_estimate(sample), sample.error
    clusters = estimate.clusters
    if error == 0 or clusters < 2:
        return estimate
    draw, chances = np.random.default_rng(BOOTSTRAP_SEED), np.full(clusters, 1 / clusters)
    ratios = []
    for start in range(0, RESAMPLES, step := max(1, MAX_RESAMPLE_WEIGHTS // clusters)):
        times = draw.multinomial(clusters, chances, size=min(step, RESAMPLES - start))
        means, errors = _mean_and_error(times.astype(float), sample)
        shown = errors > 1e-9 * error
        ratios.append((means[shown] - estimate.mean) / errors[shown])
    below, above = np.quantile(
        np.concatenate([[0.0], *ratios]), [TAIL_PROBABILITY, 1 - TAIL_PROBABILITY]
    )
    return Estimate(
        estimate.mean,
        min(estimate.low, estimate.mean - float(above) * error),
        max(estimate.high, estimate.mean - float(below) * error),
        estimate.n,
        estimate.clusters,
    )


def clustered_share(
    values: Float[Tensor, " tokens"], cluster: Int64[Tensor, " tokens"]
) -> Estimate:
    """The mean of values between 0 and 1, with an interval that lies there, too.

    It is the exact interval of as many independent trials as the tokens are worth, by the spread
    between clusters (`shares.effective_trials`). One cluster alone has an infinite interval.

    Args:
        values: one per token, in [0, 1].
        cluster: the independent piece of text that each belongs to.
    """
    sample = _sum_by_cluster(values, cluster)
    low, high = -inf, inf
    if len(sample.sums) > 1:
        low, high = binomial_interval(sample.mean, effective_trials(sample.sums, sample.sizes))
    return Estimate(sample.mean, low, high, len(values), len(sample.sums))


def clustered_quantile(
    values: Float[Tensor, " tokens"], cluster: Int64[Tensor, " tokens"], share: float
) -> Estimate:
    """The value that a share of all values does not exceed.

    The share of values up to it has an interval of its own; the quantiles at its ends are the
    interval. Where that would be beyond the largest value, or both ends are one value, nothing
    bounds it.

    Args:
        values: one per token.
        cluster: the independent piece of text that each belongs to.
        share: in (0, 1).
    Source:
        Woodruff 1952, doi:10.1080/01621459.1952.10483443, with the interval of a clustered share.
    """
    ordered = values.double().sort().values
    last = len(ordered) - 1
    quantile = float(ordered[min(last, int(len(ordered) * share))])
    inside = clustered_share((values.double() <= quantile).double(), cluster)
    low, high = -inf, inf
    if inside.clusters > 1:
        step = 1 / len(ordered)
        start = int(len(ordered) * (share - max(step, inside.high - inside.mean)))
        end = int(len(ordered) * (share + max(step, inside.mean - inside.low)))
        low = float(ordered[max(0, start)])
        high = float(ordered[end]) if end <= last and ordered[end] > low else inf
    return Estimate(quantile, low, high, inside.n, inside.clusters)


def effective_clusters(cluster: Int64[Tensor, " tokens"]) -> float:
    """How many clusters of equal size would tell as much as these, if each were one observation.

    Source:
        Kish 1965, Survey Sampling, section 11.2.
    """
    sizes = torch.bincount(cluster.unique(return_inverse=True)[1]).double()
    return float(sizes.sum() ** 2 / sizes.square().sum())


class _ClusterSums(NamedTuple):
    """The values of each cluster, summed up."""

    mean: float  # of all values
    sums: Float64[ndarray, " clusters"]
    sizes: Float64[ndarray, " clusters"]
    squares: Float64[ndarray, " clusters"]  # of what values differ from the mean by

    @property
    def error(self) -> float:
        """The standard error of the mean; exactly 0 where all values are equal."""
        if not self.squares.any():
            return 0.0
        return float(_mean_and_error(np.ones((1, len(self.sums))), self)[1][0])


def _sum_by_cluster(
    values: Float[Tensor, " tokens"], cluster: Int64[Tensor, " tokens"]
) -> _ClusterSums:
    names, members = cluster.unique(return_inverse=True)
    double = values.double()
    equal = bool((double == double[0]).all())
    mean = float(double[0] if equal else double.mean())  # rounding makes no spread

    def summed(some: Float64[Tensor, " tokens"]) -> Float64[ndarray, " clusters"]:
        return torch.zeros(len(names), dtype=torch.float64).index_add_(0, members, some).numpy()

    sizes = torch.bincount(members).double().numpy()
    return _ClusterSums(mean, summed(double), sizes, summed((double - mean).square()))


def _student_estimate(sample: _ClusterSums) -> Estimate:
    """The mean and Student's interval."""
    clusters, mean, reach = len(sample.sums), sample.mean, inf
    if clusters > 1:
        error = sample.error
        reach = _student_quantile(clusters) * error if error else max_unseen_share(clusters)
    return Estimate(mean, mean - reach, mean + reach, int(sample.sizes.sum()), clusters)


def _student_quantile(clusters: int) -> float:
    """How many standard errors the interval reaches to either side."""
    return float(stdtrit(clusters - 1, 1 - TAIL_PROBABILITY))


def _mean_and_error(
    times: Float64[ndarray, "samples clusters"], sample: _ClusterSums
) -> tuple[Float64[ndarray, " samples"], Float64[ndarray, " samples"]]:
    """Mean and standard error of samples that hold each cluster so many times.

    The error is that over clusters, or that of independent values where it is larger.
    """
    n = times @ sample.sizes
    means = times @ sample.sums / n
    residuals = (times * (sample.sums - means[:, None] * sample.sizes) ** 2).sum(axis=1)
    clusters = times.sum(axis=1)
    between = residuals * clusters / np.maximum(clusters - 1, 1) / n**2
    within = (times @ sample.squares - n * (means - sample.mean) ** 2) / np.maximum(n - 1, 1) / n
    return means, np.sqrt(np.maximum(between, within))
