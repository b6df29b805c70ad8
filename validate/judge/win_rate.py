"""How often a candidate is preferred, and how often it would be if its outputs were as long.

Judges like length, whatever else they like. The length-controlled figure is what a logistic
regression of the verdicts says of two outputs of equal length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
import torch
from jaxtyping import Float64, Int64
from numpy import ndarray
from scipy.special import expit, log_expit, stdtrit

from camelpress.core.errors import ToolProblem
from camelpress.validate.judge.pairwise import Preference
from camelpress.validate.statistics.binomial import TAIL_PROBABILITY
from camelpress.validate.statistics.clustered import Estimate, clustered_share

PRIOR_SD = 100.0  # standard deviation of a coefficient, in logits
OPTIMIZER_OPTIONS = {"gtol": 1e-9}


@dataclass(frozen=True)
class WinRate:
    """What the verdicts of one judge say; shares of 1, with 95 % intervals over pairs."""

    win_rate: Estimate
    length_controlled: Estimate
    characters: float  # by which the candidate's outputs are longer, in the mean
    draws: int  # verdicts for neither, of outputs that are the same above all
    first_shown: float | None  # share of the others that went to the output shown first
    agreement: float | None  # share of pairs, of those judged in both orders, with one winner
    invalid: int  # replies that named neither output; they count nowhere else


def win_rate(verdicts: Sequence[Preference]) -> WinRate:
    """The figures of verdicts on pairs, each judged in one order or in both.

    Raises:
        EngineProblem: there is no verdict among them.
    """
    read = [each for each in verdicts if each.score is not None]
    if not read:
        raise ToolProblem(
            "the judge gave no verdict that can be read", next_step="let another model judge"
        )
    names = {name: at for at, name in enumerate(dict.fromkeys(v.prompt.pair.id for v in read))}
    pair = np.array([names[each.prompt.pair.id] for each in read])
    won = np.array([each.score for each in read], dtype=np.float64)
    first = np.array([each.prompt.candidate_first for each in read], dtype=np.float64)
    longer = np.array([_length_difference(each) for each in read], dtype=np.float64)
    decided = won != 0.5
    shown = np.where(first[decided] == 1, won[decided], 1 - won[decided])
    sides = [won[pair == each] for each in range(len(names))]
    twice = [side for side in sides if len(side) == 2]
    return WinRate(
        win_rate=clustered_share(torch.from_numpy(won), torch.from_numpy(pair)),
        length_controlled=length_controlled_win_rate(won, longer, first, pair),
        characters=float(longer.mean()),
        draws=int((~decided).sum()),
        first_shown=float(shown.mean()) if len(shown) else None,
        agreement=float(np.mean([a == b for a, b in twice])) if twice else None,
        invalid=len(verdicts) - len(read),
    )


def length_controlled_win_rate(
    won: Float64[ndarray, " verdicts"],
    longer: Float64[ndarray, " verdicts"],
    first: Float64[ndarray, " verdicts"],
    pair: Int64[ndarray, " verdicts"],
) -> Estimate:
    """The win rate that the verdicts would show between outputs of the same length.

    logit P(won) = a + b tanh(longer / sd(longer)) + c (first - 1/2), fitted by maximum likelihood;
    the figure is P at b's and c's terms 0, which is 1 / (1 + exp(-a)). Its interval is that of a,
    from the spread between pairs. A prior of N(0, 100²) on each coefficient keeps them finite where
    a candidate always wins, or lengths alone decide; elsewhere it changes the fifth digit. Where
    the fit foretells every verdict that is no draw, there is no spread to make an interval of.

    Args:
        won: by the candidate: 1, 0, or between.
        longer: characters by which its output is the longer one.
        first: 1 where it was shown first, else 0.
        pair: which pair each verdict is on.
    Source:
        Dubois et al. 2024, arXiv:2404.04475, section 3; tatsu-lab/alpaca_eval 1020da2,
        metrics/glm_winrate.py. Ours has no term for how hard an instruction is: it comes from
        many models' verdicts of one judge. Theirs has none for the order, and shrinks b by
        cross-validation and by verdicts on outputs that were made longer.
    """
    spread = float(longer.std(ddof=1)) if len(longer) > 1 else 0.0
    columns = [np.ones_like(won)]
    if spread > 0:
        columns.append(np.tanh(longer / spread))
    if 0 < first.mean() < 1:
        columns.append(first - 0.5)
    coefficients, errors = fit_logistic(np.stack(columns, axis=1), won, pair, prior=PRIOR_SD)
    pairs = len(np.unique(pair))
    mean = float(expit(coefficients[0]))
    if (
        pairs < 2
        or _is_constant(won)
        or _is_separated(won, np.stack(columns, axis=1) @ coefficients)
    ):
        return Estimate(mean, -inf, inf, len(won), pairs)
    reach = float(stdtrit(pairs - 1, 1 - TAIL_PROBABILITY) * errors[0])
    low, high = (float(expit(coefficients[0] + side * reach)) for side in (-1, 1))
    return Estimate(mean, low, high, len(won), pairs)


def fit_logistic(
    design: Float64[ndarray, "verdicts terms"],
    won: Float64[ndarray, " verdicts"],
    cluster: Int64[ndarray, " verdicts"],
    *,
    prior: float,
) -> tuple[Float64[ndarray, " terms"], Float64[ndarray, " terms"]]:
    """Coefficients of a logistic regression, and their standard errors over clusters.

    Args:
        won: 0 to 1; between, it counts as so much of a win and the rest of a loss.
        cluster: verdicts of one go together.
        prior: standard deviation of each coefficient; infinite for plain maximum likelihood.
    Source:
        McCullagh and Nelder 1989, Generalized Linear Models, section 4.4; clustered errors as in
        Liang and Zeger 1986, doi:10.1093/biomet/73.1.13, times clusters / (clusters - 1).
    """
    from scipy.optimize import minimize  # a quarter of a second, which a text does not need

    weight = 1 / prior**2

    def loss(terms: Float64[ndarray, " terms"]) -> float:
        logits = design @ terms
        likelihood = won * log_expit(logits) + (1 - won) * log_expit(-logits)
        return float(weight / 2 * terms @ terms - likelihood.sum())

    def slope(terms: Float64[ndarray, " terms"]) -> Float64[ndarray, " terms"]:
        return weight * terms - design.T @ (won - expit(design @ terms))

    def curvature(terms: Float64[ndarray, " terms"]) -> Float64[ndarray, "terms terms"]:
        chance = expit(design @ terms)
        return weight * np.eye(len(terms)) + (design.T * (chance * (1 - chance))) @ design

    start = np.zeros(design.shape[1])
    found = minimize(
        loss, start, jac=slope, hess=curvature, method="trust-exact", options=OPTIMIZER_OPTIONS
    ).x
    _, member = np.unique(cluster, return_inverse=True)
    sums = np.zeros((member.max() + 1, len(found)))
    np.add.at(sums, member, design * (won - expit(design @ found))[:, None])
    bread = np.linalg.inv(curvature(found))
    meat = sums.T @ sums * len(sums) / max(len(sums) - 1, 1)
    return found, np.sqrt(np.diag(bread @ meat @ bread))


def _is_separated(
    won: Float64[ndarray, " verdicts"], logits: Float64[ndarray, " verdicts"]
) -> bool:
    """Whether each verdict for one side is on the side of its logit: then none tells the error.

    Source:
        Albert and Anderson 1984, doi:10.1093/biomet/71.1.1: complete separation.
    """
    return bool(((won - 0.5) * logits > 0)[won != 0.5].all())


def _is_constant(values: Float64[ndarray, " values"]) -> bool:
    return bool((values == values[0]).all())


def _length_difference(verdict: Preference) -> int:
    return len(verdict.prompt.pair.candidate) - len(verdict.prompt.pair.reference)
