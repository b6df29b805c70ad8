"""Means and quantiles over tokens, with confidence intervals from the spread between sequences.

Tokens of one sequence are not independent, sequences are. An interval is never narrower than the
interval of independent tokens. Zero spread is not certainty: see `binomial.max_unseen_share`.
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
RESAMPLES = 1999  # bootstrap draws
MAX_RESAMPLE_WEIGHTS = 2**22  # cluster counts in memory per batch of draws
BOOTSTRAP_SEED = 20_240_711


@dataclass(frozen=True)
class Estimate:
    """An estimate over tokens with its 95 % interval from the spread between clusters."""

    mean: float
    low: float
    high: float
    n: int
    clusters: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval, or None if it is unbounded."""
        bounded = self.clusters > 1 and isfinite(self.low) and isfinite(self.high)
        return (self.low, self.high) if bounded else None


def clustered_mean(values: Float[Tensor, " tokens"], cluster: Int64[Tensor, " tokens"]) -> Estimate:
    """Returns the mean of values that correlate within clusters.

    The interval is mean ± t * se with se² = C/(C-1) * sum over clusters of (sum of (x - mean))²
    / n², and Student's t with C-1 degrees of freedom; se is at least the error of independent
    values. Equal values have the interval of the share of clusters that none of C shows: so large a
    share may be off by 1, a nat of a divergence or the whole of a score. The interval of a single
    cluster is infinite.

    Args:
        values: one value per token.
        cluster: number of the independent piece of text of each token.
    Source:
        Miller 2024, arXiv:2411.00640, section 2.2 (clustered standard errors).
    """
    return _student_estimate(_sum_by_cluster(values, cluster))


def bootstrap_mean(values: Float[Tensor, " tokens"], cluster: Int64[Tensor, " tokens"]) -> Estimate:
    """Returns the mean of heavy-tailed values such as divergences, by a bootstrap over clusters.

    For each of `RESAMPLES` draws of C clusters with replacement, t = (mean' - mean) / se' is
    computed; the interval is mean - t(97.5 %) * se to mean - t(2.5 %) * se. It is on neither side
    shorter than the interval of `clustered_mean`, because a draw from few clusters can hold only
    one of them and show no spread. The draws are the same in each run.

    Args:
        values: one value per token.
        cluster: number of the independent piece of text of each token.
    Source:
        Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 12.5 (bootstrap-t);
        of clusters as in Cameron, Gelbach and Miller 2008, doi:10.1162/rest.90.3.414.
    """
    sample = _sum_by_cluster(values, cluster)
    estimate, error = _student_estimate(sample), sample.error
    clusters = estimate.clusters
    if error == 0 or clusters < 2:
        return estimate
    rng, chances = np.random.default_rng(BOOTSTRAP_SEED), np.full(clusters, 1 / clusters)
    ratios = []
    for start in range(0, RESAMPLES, step := max(1, MAX_RESAMPLE_WEIGHTS // clusters)):
        times = rng.multinomial(clusters, chances, size=min(step, RESAMPLES - start))
        means, errors = _mean_and_error(times.astype(float), sample)
        has_spread = errors > 1e-9 * error
        ratios.append((means[has_spread] - estimate.mean) / errors[has_spread])
    low_quantile, high_quantile = np.quantile(
        np.concatenate([[0.0], *ratios]), [TAIL_PROBABILITY, 1 - TAIL_PROBABILITY]
    )
    return Estimate(
        estimate.mean,
        min(estimate.low, estimate.mean - float(high_quantile) * error),
        max(estimate.high, estimate.mean - float(low_quantile) * error),
        estimate.n,
        estimate.clusters,
    )


def clustered_share(
    values: Float[Tensor, " tokens"], cluster: Int64[Tensor, " tokens"]
) -> Estimate:
    """Returns the mean of values between 0 and 1, with an interval between 0 and 1.

    It is the exact interval of the number of independent trials with the same evidence
    (`binomial.effective_trials`). The interval of a single cluster is infinite.

    Args:
        values: one value per token, in [0, 1].
        cluster: number of the independent piece of text of each token.
    """
    sample = _sum_by_cluster(values, cluster)
    low, high = -inf, inf
    if len(sample.sums) > 1:
        low, high = binomial_interval(sample.mean, effective_trials(sample.sums, sample.sizes))
    return Estimate(sample.mean, low, high, len(values), len(sample.sums))


def clustered_quantile(
    values: Float[Tensor, " tokens"], cluster: Int64[Tensor, " tokens"], share: float
) -> Estimate:
    """Returns the quantile of all values at a share.

    The share of values up to the quantile has an interval; the quantiles at its ends are the
    interval of the quantile. It is unbounded if an end lies beyond the largest value, or if both
    ends are the same value.

    Args:
        values: one value per token.
        cluster: number of the independent piece of text of each token.
        share: share of the values up to the quantile, in (0, 1).
    Source:
        Woodruff 1952, doi:10.1080/01621459.1952.10483443, with the interval of a clustered share.
    """
    sorted_values = values.double().sort().values
    last = len(sorted_values) - 1
    quantile = float(sorted_values[min(last, int(len(sorted_values) * share))])
    share_estimate = clustered_share((values.double() <= quantile).double(), cluster)
    low, high = -inf, inf
    if share_estimate.clusters > 1:
        step = 1 / len(sorted_values)
        start = int(
            len(sorted_values) * (share - max(step, share_estimate.high - share_estimate.mean))
        )
        end = int(
            len(sorted_values) * (share + max(step, share_estimate.mean - share_estimate.low))
        )
        low = float(sorted_values[max(0, start)])
        high = float(sorted_values[end]) if end <= last and sorted_values[end] > low else inf
    return Estimate(quantile, low, high, share_estimate.n, share_estimate.clusters)


def effective_clusters(cluster: Int64[Tensor, " tokens"]) -> float:
    """Returns the number of equal clusters with the same evidence, one observation per cluster.

    Source:
        Kish 1965, Survey Sampling, section 11.2.
    """
    sizes = torch.bincount(cluster.unique(return_inverse=True)[1]).double()
    return float(sizes.sum() ** 2 / sizes.square().sum())


class _ClusterSums(NamedTuple):
    """Sums over the values of each cluster."""

    mean: float  # mean of all values
    sums: Float64[ndarray, " clusters"]
    sizes: Float64[ndarray, " clusters"]
    squares: Float64[ndarray, " clusters"]  # sums of squared differences from the mean

    @property
    def error(self) -> float:
        """Standard error of the mean; exactly 0 if all values are equal."""
        if not self.squares.any():
            return 0.0
        return float(_mean_and_error(np.ones((1, len(self.sums))), self)[1][0])


def _sum_by_cluster(
    values: Float[Tensor, " tokens"], cluster: Int64[Tensor, " tokens"]
) -> _ClusterSums:
    names, members = cluster.unique(return_inverse=True)
    values64 = values.double()
    is_constant = bool((values64 == values64[0]).all())
    mean = float(
        values64[0] if is_constant else values64.mean()
    )  # exact, so rounding adds no spread

    def sum_column(column: Float64[Tensor, " tokens"]) -> Float64[ndarray, " clusters"]:
        return torch.zeros(len(names), dtype=torch.float64).index_add_(0, members, column).numpy()

    sizes = torch.bincount(members).double().numpy()
    return _ClusterSums(mean, sum_column(values64), sizes, sum_column((values64 - mean).square()))


def _student_estimate(sample: _ClusterSums) -> Estimate:
    """Returns the mean with Student's interval."""
    clusters, mean, reach = len(sample.sums), sample.mean, inf
    if clusters > 1:
        error = sample.error
        reach = _student_quantile(clusters) * error if error else max_unseen_share(clusters)
    return Estimate(mean, mean - reach, mean + reach, int(sample.sizes.sum()), clusters)


def _student_quantile(clusters: int) -> float:
    """Returns half the width of the interval in standard errors."""
    return float(stdtrit(clusters - 1, 1 - TAIL_PROBABILITY))


def _mean_and_error(
    times: Float64[ndarray, "samples clusters"], sample: _ClusterSums
) -> tuple[Float64[ndarray, " samples"], Float64[ndarray, " samples"]]:
    """Returns the mean and standard error of each sample.

    `times` counts each cluster in each sample. The error is the larger of the error over clusters
    and the error of independent values.
    """
    n = times @ sample.sizes
    means = times @ sample.sums / n
    residuals = (times * (sample.sums - means[:, None] * sample.sizes) ** 2).sum(axis=1)
    clusters = times.sum(axis=1)
    cluster_variance = residuals * clusters / np.maximum(clusters - 1, 1) / n**2
    token_variance = (
        (times @ sample.squares - n * (means - sample.mean) ** 2) / np.maximum(n - 1, 1) / n
    )
    return means, np.sqrt(np.maximum(cluster_variance, token_variance))
