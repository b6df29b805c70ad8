"""How often 95 % intervals hold the truth: python -m benchmarks.validate.coverage [--runs 2000]

Agreements are drawn as beta-binomial counts: each piece of text has a share of its own, and tokens
of one piece are correlated. Divergences are lognormal between and within pieces. Copies are pieces
that stand there up to twenty times, joined as `validate` joins them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from math import exp
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from numpy import ndarray
from scipy.special import stdtrit

from benchmarks.tables import table
from camelpress.validate.statistics.binomial import (
    TAIL_PROBABILITY,
    binomial_interval,
    effective_trials,
)
from camelpress.validate.statistics.clustered import Estimate, bootstrap_mean, clustered_mean

PIECES = (3, 5, 10, 20, 50, 100, 300)
SHARES = (0.5, 0.8, 0.9, 0.94, 0.97, 0.99, 0.999)
TOKENS = 100  # of a piece, in the mean
COPIES = 20  # of a piece that repeats, at most
BETWEEN, WITHIN = 0.5, 1.5  # spread of the logarithm of divergences
SEED = 2_026

Counts = Float64[ndarray, " pieces"]
Ends = tuple[float, float]


class Design(NamedTuple):
    """A kind of text.

    Args:
        correlation: of two tokens of one piece, in [0, 1].
        uneven: lengths of pieces are lognormal, with a deviation as large as their mean.
        copies: half of the pieces are repeated.
    """

    correlation: float
    uneven: bool = False
    copies: bool = False

    @property
    def name(self) -> str:
        """The head of a column."""
        return f"{self.correlation:g}" + (", copies" if self.copies else "")


class Coverage(NamedTuple):
    """The shares of data sets whose interval lies above the truth, and below it."""

    above: float
    below: float

    @property
    def held(self) -> float:
        """The share of intervals that hold the truth."""
        return 1 - self.above - self.below


CORRELATIONS = (0.0, 0.05, 0.2, 0.5, 1.0)
DESIGNS = [Design(each) for each in CORRELATIONS]
DESIGNS += [Design(0.05, copies=True), Design(0.2, copies=True)]


def agreements(
    pieces: int, share: float, design: Design, runs: int
) -> Iterator[tuple[Counts, Counts]]:
    """Agreeing and all predictions of each piece, data set by data set."""
    draw = np.random.default_rng(
        (SEED, pieces, round(1e4 * share), round(100 * design.correlation))
    )
    for _ in range(runs):
        sizes = np.full(pieces, TOKENS)
        if design.uneven:
            spread = np.log(2.0)
            lengths = draw.lognormal(-spread / 2, np.sqrt(spread), pieces)
            sizes = np.maximum(2, np.round(TOKENS * lengths)).astype(int)
        own = _shares(draw, pieces, share, design.correlation)
        agreeing = draw.binomial(sizes, own)
        times = np.ones(pieces)
        if design.copies:
            often = draw.random(pieces) < 0.5
            times = np.where(often, draw.integers(1, COPIES, pieces), 1).astype(float)
        yield times * agreeing, times * sizes


def _shares(draw: np.random.Generator, pieces: int, share: float, correlation: float) -> Counts:
    if correlation == 0:
        return np.full(pieces, share)
    if correlation == 1:
        return (draw.random(pieces) < share).astype(float)
    weight = (1 - correlation) / correlation
    return draw.beta(share * weight, (1 - share) * weight, pieces)


def interval(agreeing: Counts, sizes: Counts) -> Ends:
    """The interval of a share as `validate` computes it."""
    share = float(agreeing.sum() / sizes.sum())
    return binomial_interval(share, effective_trials(agreeing, sizes))


def usual(agreeing: Counts, sizes: Counts) -> Ends:
    """The interval by clustered standard errors, which knows no bounds."""
    share, count = agreeing.sum() / sizes.sum(), len(sizes)
    squares = float(((agreeing - share * sizes) ** 2).sum())
    error = (squares * count / (count - 1)) ** 0.5 / sizes.sum()
    reach = float(stdtrit(count - 1, 1 - TAIL_PROBABILITY)) * error
    return float(share - reach), float(share + reach)


def coverage(
    pieces: int,
    share: float,
    design: Design,
    runs: int,
    method: Callable[[Counts, Counts], Ends] = interval,
) -> Coverage:
    """How often the interval of an agreement holds the true share."""
    ends = np.array([method(*counts) for counts in agreements(pieces, share, design, runs)])
    above = (ends[:, 0] > share + 1e-12).mean()
    return Coverage(float(above), float((ends[:, 1] < share - 1e-12).mean()))


def divergences(pieces: int, runs: int, method: Callable[..., Estimate]) -> Coverage:
    """How often the interval of a mean divergence holds the true mean."""
    truth = exp((BETWEEN**2 + WITHIN**2) / 2)
    draw = np.random.default_rng((SEED, pieces))
    cluster = torch.arange(pieces).repeat_interleave(TOKENS)
    ends = []
    for _ in range(runs):
        centres = draw.lognormal(0, BETWEEN, pieces).repeat(TOKENS)
        values = torch.from_numpy(centres * draw.lognormal(0, WITHIN, pieces * TOKENS))
        estimate = method(values, cluster)
        ends.append((estimate.low, estimate.high))
    low, high = np.array(ends).T
    return Coverage(float((low > truth).mean()), float((high < truth).mean()))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2000)
    runs = parser.parse_args().runs
    for uneven in (False, True):
        designs = [design._replace(uneven=uneven) for design in DESIGNS]
        print(f"\nPieces of {'very different lengths' if uneven else 'equal length'}\n")
        print(table(["pieces", *(each.name for each in designs)], _rows(designs, runs, interval)))
        print("\nThe same by clustered errors and Student's t\n")
        print(table(["pieces", *(each.name for each in designs)], _rows(designs, runs, usual)))
    print("\nMean divergence\n")
    rows = [
        [f"{pieces}", *(_cell(divergences(pieces, runs // 4, method)) for method in METHODS)]
        for pieces in PIECES
    ]
    print(table(["pieces", "clustered error, Student's t", "bootstrap-t"], rows))


METHODS = (clustered_mean, bootstrap_mean)


def _rows(
    designs: list[Design], runs: int, method: Callable[[Counts, Counts], Ends]
) -> list[list[str]]:
    """The worst share of each number of pieces and design, by coverage."""
    return [
        [f"{pieces}"]
        + [
            _cell(
                min(
                    (coverage(pieces, share, design, runs, method) for share in SHARES),
                    key=lambda found: found.held,
                )
            )
            for design in designs
        ]
        for pieces in PIECES
    ]


def _cell(found: Coverage) -> str:
    return f"{100 * found.held:.1f} %"


if __name__ == "__main__":
    main()
