"""Two models on the same items, each right or wrong: is one worse, and by how much?

Only the items on which they differ tell: `lost` are those that the candidate alone gets wrong,
`won` those that the reference alone gets wrong. Items are taken for independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from scipy.special import bdtrc, ndtri

TEST_POWER = 0.8
SCORE_EPSILON = 1e-12  # from where the score is no number


def tango_interval(n: int, lost: int, won: int, *, confidence: float) -> tuple[float, float]:
    """The losses of accuracy that these counts do not contradict, as shares of all items.

    A candidate is non-inferior by a margin if the upper end is within it. That is a test whose
    error is half of what the confidence leaves. Unlike mean ± z * se the interval has a width
    where no item differs: of ten equal answers it says 0 ± 28 %, not 0 ± 0.

    Args:
        n: items, at least one.
        lost: right by the reference only.
        won: right by the candidate only.
        confidence: of the two-sided interval, in (0, 1).
    Source:
        Tango 1998, doi:10.1002/(SICI)1097-0258(19980430)17:8<891::AID-SIM780>3.0.CO;2-B: the
        score test of a paired difference, turned into an interval.
    """
    from scipy.optimize import brentq  # a quarter of a second, which a text does not need

    observed = (lost - won) / n
    reach = float(ndtri(0.5 + confidence / 2))

    def above(loss: float) -> float:
        return _score_statistic(n, lost, won, loss) + reach

    def below(loss: float) -> float:
        return _score_statistic(n, lost, won, loss) - reach

    high = 1.0 if lost == n else float(brentq(above, observed, 1 - SCORE_EPSILON))
    low = -1.0 if won == n else float(brentq(below, SCORE_EPSILON - 1, observed))
    return low, high


def _score_statistic(n: int, lost: int, won: int, loss: float) -> float:
    """How many standard errors, under the loss, the observed one lies above it."""
    linear = (2 * n - lost + won) * loss - (lost + won)
    constant = -won * loss * (1 - loss)
    root = sqrt(max(0.0, linear**2 - 8 * n * constant))
    winning = max(0.0, (root - linear) / (4 * n))  # the likeliest share of `won`, given the loss
    variance = max((2 * winning + loss * (1 - loss)) / n, SCORE_EPSILON**2)
    return ((lost - won) / n - loss) / sqrt(variance)


def mcnemar_p_value(lost: int, won: int) -> float:
    """How probable so many losses are, or more, if the models are equally good.

    The exact one-sided test of McNemar: of the items that differ, half are lost.

    Source:
        McNemar 1947, doi:10.1007/BF02295996; the tail of scipy's binomial distribution.
    """
    if not lost + won:
        return 1.0
    return float(bdtrc(lost - 1, lost + won, 0.5))


def holm_adjust(p_values: Sequence[float]) -> list[float]:
    """Each p-value as it counts in the family of all of them.

    Source:
        Holm 1979, A Simple Sequentially Rejective Multiple Test Procedure.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def detectable_loss(n: int, flips: float, *, alpha: float) -> float | None:
    """The smallest loss of accuracy that a one-sided test finds four times in five.

    Args:
        n: items.
        flips: share of items on which the models differ.
        alpha: error of the test.
    Returns:
        a share of all items; None if not even a loss of all that differ would be found so often.
    Source:
        arXiv:2605.28873: (z(1-alpha) + z(power)) * sqrt(flips / n). Ours says None where that
        would be more than can be lost.
    """
    found = float(ndtri(1 - alpha) + ndtri(TEST_POWER)) * sqrt(flips / n)
    return found if 0 < found <= flips else None
