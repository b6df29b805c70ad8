"""Binomial intervals of shares, always within 0 and 1.

Tokens of one sequence are not independent, so a share over many tokens has the evidence of fewer
trials. Its interval is the binomial interval of so many trials, and has a width even if all trials
agree.
"""

from __future__ import annotations

from jaxtyping import Float64
from numpy import ndarray
from scipy.special import betaincinv, ndtri, stdtrit

CONFIDENCE = 0.95  # coverage of every interval
TAIL_PROBABILITY = (1 - CONFIDENCE) / 2  # probability beyond either end


def binomial_interval(share: float, trials: float) -> tuple[float, float]:
    """Returns the exact 95 % interval of a share of independent trials; `trials` may be a fraction.

    Source:
        Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404, by quantiles of beta distributions.
    """
    hits, misses = share * trials, (1 - share) * trials
    low = float(betaincinv(hits, misses + 1, TAIL_PROBABILITY)) if hits > 0 else 0.0
    high = float(betaincinv(hits + 1, misses, 1 - TAIL_PROBABILITY)) if misses > 0 else 1.0
    return min(low, share), max(high, share)


def effective_trials(
    sums: Float64[ndarray, " clusters"], sizes: Float64[ndarray, " clusters"]
) -> float:
    """Returns the number of independent trials with the same evidence as clustered values.

    The number is share * (1 - share) / variance, with the jackknife variance between clusters,
    times (z / t)² for the uncertainty of that variance. The degrees of freedom of t are one less
    than the number of clusters behind the variance, few if a few of them hold all differences. The
    result is at most the number of tokens, and at least the number of equal clusters, as if each
    were one trial. The minimum also applies if no values differ: then nothing shows the correlation
    within clusters.

    Args:
        sums: sum of the values of each cluster, each value in [0, 1].
        sizes: number of values of each cluster; at least two clusters.
    Source:
        Korn and Graubard 1998, Survey Methodology 24(2), 193-201; the number of equal clusters by
        Kish 1965, Survey Sampling, section 11.2. Ours counts the clusters behind the variance by
        the participation ratio of their squared residuals, (sum of r²)² / sum of r⁴.
    """
    n, clusters = float(sizes.sum()), len(sums)
    share = min(1.0, float(sums.sum()) / n)
    leverage = (clusters - 1) / clusters * n / (n - sizes)  # 1 for equal clusters
    squares = (leverage * (sums - share * sizes)) ** 2
    equal_clusters, total = n**2 / float((sizes**2).sum()), float(squares.sum())
    spread = share * (1 - share)
    if spread <= 0:
        return equal_clusters
    if total <= 1e-18 * n**2:  # residuals from rounding alone
        return n
    variance_clusters = total**2 / float((squares**2).sum())
    freedom = max(1.0, min(equal_clusters, variance_clusters) - 1)
    variance = clusters / (clusters - 1) * total / n**2
    t_correction = (
        float(ndtri(1 - TAIL_PROBABILITY)) / float(stdtrit(freedom, 1 - TAIL_PROBABILITY))
    ) ** 2
    return min(n, max(equal_clusters, spread / variance * t_correction))


def max_unseen_share(clusters: int) -> float:
    """Returns the largest share of differing clusters consistent with none among `clusters`.

    At 97.5 % confidence it is the upper end of the exact interval of a share of 0: about 3.7 /
    clusters.
    """
    return float(1 - TAIL_PROBABILITY ** (1 / clusters))
