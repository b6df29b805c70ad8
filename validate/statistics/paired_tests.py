"""Paired tests of two models on the same items, each answered right or wrong.

Only items with different results count: `lost` are wrong for the candidate alone, `won` are wrong
for the reference alone. Items are assumed to be independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from scipy.special import bdtrc, ndtri

TEST_POWER = 0.8  # probability of detecting a true loss
SCORE_EPSILON = 1e-12  # distance from ±1, the poles of the score


def tango_interval(n: int, lost: int, won: int, *, confidence: float) -> tuple[float, float]:
    """Returns the interval of the loss of accuracy, as a share of all items.

    A candidate is non-inferior by a margin if the upper end is within it. The error of that test is
    half of 1 - confidence. Unlike mean ± z * se the interval has a width even if no item differs:
    for ten equal answers it is 0 ± 28 %, not 0 ± 0.

    Args:
        n: number of items, at least one.
        lost: items with a right answer of the reference only.
        won: items with a right answer of the candidate only.
        confidence: coverage of the two-sided interval, in (0, 1).
    Source:
        Tango 1998, doi:10.1002/(SICI)1097-0258(19980430)17:8<891::AID-SIM780>3.0.CO;2-B: the
        score test of a paired difference, inverted to an interval.
    """
    from scipy.optimize import brentq  # 0.25 s to import, not needed for texts

    observed_loss = (lost - won) / n
    critical_value = float(ndtri(0.5 + confidence / 2))

    def upper_distance(loss: float) -> float:
        return _score_statistic(n, lost, won, loss) + critical_value

    def lower_distance(loss: float) -> float:
        return _score_statistic(n, lost, won, loss) - critical_value

    high = 1.0 if lost == n else float(brentq(upper_distance, observed_loss, 1 - SCORE_EPSILON))
    low = -1.0 if won == n else float(brentq(lower_distance, SCORE_EPSILON - 1, observed_loss))
    return low, high


def _score_statistic(n: int, lost: int, won: int, loss: float) -> float:
    """Returns the distance of the observed loss from `loss` in standard errors under `loss`."""
    linear = (2 * n - lost + won) * loss - (lost + won)
    constant = -won * loss * (1 - loss)
    root = sqrt(max(0.0, linear**2 - 8 * n * constant))
    won_share = max(
        0.0, (root - linear) / (4 * n)
    )  # maximum likelihood share of `won` under the loss
    variance = max((2 * won_share + loss * (1 - loss)) / n, SCORE_EPSILON**2)
    return ((lost - won) / n - loss) / sqrt(variance)


def mcnemar_p_value(lost: int, won: int) -> float:
    """Returns the probability of at least so many losses if both models are equally good.

    It is the exact one-sided test of McNemar: half of the differing items are lost on average.

    Source:
        McNemar 1947, doi:10.1007/BF02295996; the tail of scipy's binomial distribution.
    """
    if not lost + won:
        return 1.0
    return float(bdtrc(lost - 1, lost + won, 0.5))


def holm_adjust(p_values: Sequence[float]) -> list[float]:
    """Adjusts each p-value for the family of all of them.

    Source:
        Holm 1979, A Simple Sequentially Rejective Multiple Test Procedure.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, max_p_value = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        max_p_value = max(max_p_value, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = max_p_value
    return adjusted


def detectable_loss(n: int, flips: float, *, alpha: float) -> float | None:
    """Returns the smallest loss of accuracy that a one-sided test detects with a power of 0.8.

    Args:
        n: number of items.
        flips: share of items with different results.
        alpha: error of the test.
    Returns:
        a share of all items; None if even the loss of all differing items is not detected so often.
    Source:
        arXiv:2605.28873: (z(1-alpha) + z(power)) * sqrt(flips / n). Ours is None if that exceeds
        the largest possible loss.
    """
    loss = float(ndtri(1 - alpha) + ndtri(TEST_POWER)) * sqrt(flips / n)
    return loss if 0 < loss <= flips else None
