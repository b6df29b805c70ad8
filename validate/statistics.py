"""Means with honest intervals: tokens of one sequence are not independent, sequences are."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
from jaxtyping import Float, Int64
from scipy.stats import t as student
from torch import Tensor

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over tokens and its 95 % interval, from the spread between clusters."""

    mean: float
    low: float
    high: float
    n: int
    clusters: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval, or None where nothing bounds it."""
        return (self.low, self.high) if self.clusters > 1 else None


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
    values = values.double()
    mean = float(values.mean())
    _, members = cluster.unique(return_inverse=True)
    clusters = int(members.max()) + 1
    if clusters < 2:
        return Estimate(mean, -inf, inf, len(values), clusters)
    sums = torch.zeros(clusters, dtype=torch.float64).index_add_(0, members, values - mean)
    variance = float(sums.square().sum()) * clusters / (clusters - 1) / len(values) ** 2
    reach = float(student.ppf(0.5 + CONFIDENCE / 2, clusters - 1)) * variance**0.5
    return Estimate(mean, mean - reach, mean + reach, len(values), clusters)
