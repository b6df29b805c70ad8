"""Intervals of shares: they know that a share lies between 0 and 1.

Tokens of one sequence are not independent, so a share over many tokens is worth fewer trials. An
interval is that of a binomial share of so many trials, and has a width where all trials agree.
"""

from __future__ import annotations

from jaxtyping import Float64
from numpy import ndarray
from scipy.special import betaincinv, ndtri, stdtrit

CONFIDENCE = 0.95  # coverage of every interval
TAIL_PROBABILITY = (1 - CONFIDENCE) / 2  # probability beyond either end


def binomial_interval(share: float, trials: float) -> tuple[float, float]:
    """The exact 95 % interval of a share of independent trials, whose number may be a fraction.

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
    """Returns the number of independent trials with as much evidence as clustered ones.

    It is share * (1 - share) / variance, with the variance between clusters by the jackknife, times
    (z / t)² for what is not known of that variance. The degrees of freedom of t are one less than
    the clusters that the variance comes from: few, where few of them hold all that differs. There
    are never more trials than tokens, and never fewer than equal clusters that are one trial each.
    That least number holds, too, where nothing differs: then nothing tells how tokens go together.

    Args:
        sums: of the values of each cluster, each value in [0, 1].
        sizes: how many values each cluster has; two clusters at least.
    Source:
        Korn and Graubard 1998, Survey Methodology 24(2), 193-201; the number of equal clusters by
        Kish 1965, Survey Sampling, section 11.2. Ours counts the clusters behind the variance by
        the participation ratio of their squared residuals, (sum of r²)² / sum of r⁴.
    """
    n, clusters = float(sizes.sum()), len(sums)
    share = min(1.0, float(sums.sum()) / n)
    pull = (clusters - 1) / clusters * n / (n - sizes)  # on the share: 1 for equal clusters
    squares = (pull * (sums - share * sizes)) ** 2
    least, total = n**2 / float((sizes**2).sum()), float(squares.sum())
    spread = share * (1 - share)
    if spread <= 0:
        return least
    if total <= 1e-18 * n**2:  # rounding alone
        return n
    behind = total**2 / float((squares**2).sum())
    freedom = max(1.0, min(least, behind) - 1)
    variance = clusters / (clusters - 1) * total / n**2
    known = (
        float(ndtri(1 - TAIL_PROBABILITY)) / float(stdtrit(freedom, 1 - TAIL_PROBABILITY))
    ) ** 2
    return min(n, max(least, spread / variance * known))


def max_unseen_share(clusters: int) -> float:
    """The largest share of clusters that differ if none of so many does, at 97.5 % confidence.

    It is the end of the exact interval of a share that is 0: about 3.7 in all clusters.
    """
    return float(1 - TAIL_PROBABILITY ** (1 / clusters))
