"""Computes the win rate of a candidate, raw and controlled for output length.

Judges prefer long outputs. The length-controlled win rate is the prediction of a logistic
regression of the verdicts for two outputs of equal length.
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
    """Win rates from the verdicts of one judge; shares in [0, 1] with 95 % intervals over pairs."""

    win_rate: Estimate
    length_controlled: Estimate
    characters: float  # mean excess length of the candidate's outputs
    draws: int  # number of ties, mostly between equal outputs
    first_shown: float | None  # share of the other verdicts for the output shown first
    agreement: float | None  # share of pairs with one winner among those judged in both orders
    invalid: int  # replies without a verdict; excluded from all other fields


def win_rate(verdicts: Sequence[Preference]) -> WinRate:
    """Computes the win rates of verdicts on pairs, judged in one or both orders.

    Raises:
        ToolProblem: There is no readable verdict.
    """
    valid_verdicts = [verdict for verdict in verdicts if verdict.score is not None]
    if not valid_verdicts:
        raise ToolProblem("the judge gave no readable verdict", next_step="use another judge model")
    pair_indices = {
        name: index
        for index, name in enumerate(
            dict.fromkeys(verdict.prompt.pair.id for verdict in valid_verdicts)
        )
    }
    pair = np.array([pair_indices[verdict.prompt.pair.id] for verdict in valid_verdicts])
    won = np.array([verdict.score for verdict in valid_verdicts], dtype=np.float64)
    first = np.array(
        [verdict.prompt.candidate_first for verdict in valid_verdicts], dtype=np.float64
    )
    longer = np.array([_length_difference(verdict) for verdict in valid_verdicts], dtype=np.float64)
    is_decided = won != 0.5
    first_shown_won = np.where(first[is_decided] == 1, won[is_decided], 1 - won[is_decided])
    scores_by_pair = [won[pair == index] for index in range(len(pair_indices))]
    both_orders = [scores for scores in scores_by_pair if len(scores) == 2]
    return WinRate(
        win_rate=clustered_share(torch.from_numpy(won), torch.from_numpy(pair)),
        length_controlled=length_controlled_win_rate(won, longer, first, pair),
        characters=float(longer.mean()),
        draws=int((~is_decided).sum()),
        first_shown=float(first_shown_won.mean()) if len(first_shown_won) else None,
        agreement=float(np.mean([a == b for a, b in both_orders])) if both_orders else None,
        invalid=len(verdicts) - len(valid_verdicts),
    )


def length_controlled_win_rate(
    won: Float64[ndarray, " verdicts"],
    longer: Float64[ndarray, " verdicts"],
    first: Float64[ndarray, " verdicts"],
    pair: Int64[ndarray, " verdicts"],
) -> Estimate:
    """Estimates the win rate between outputs of equal length.

    Fits logit P(won) = a + b tanh(longer / sd(longer)) + c (first - 1/2) by maximum likelihood.
    The win rate is P with the terms of b and c at 0, 1 / (1 + exp(-a)). Its interval is the
    interval of a, clustered by pair. A prior of N(0, 100²) on each coefficient keeps them finite
    if the candidate always wins or lengths alone decide; otherwise it changes the fifth digit. A
    fit that predicts every decided verdict leaves no spread, so the interval is infinite.

    Args:
        won: candidate's result per verdict: 1, 0 or a value between.
        longer: excess length of the candidate's output, characters.
        first: 1 for a candidate shown first, else 0.
        pair: index of the pair of each verdict.
    Returns:
        The estimate with its 95 % interval, a share in [0, 1].
    Source:
        Dubois et al. 2024, arXiv:2404.04475, section 3; tatsu-lab/alpaca_eval 1020da2,
        metrics/glm_winrate.py. Ours omits the term for instruction difficulty, which needs many
        models' verdicts of one judge. Theirs omits the order term, and shrinks b by
        cross-validation and by verdicts on artificially lengthened outputs.
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
    half_width = float(stdtrit(pairs - 1, 1 - TAIL_PROBABILITY) * errors[0])
    low, high = (float(expit(coefficients[0] + sign * half_width)) for sign in (-1, 1))
    return Estimate(mean, low, high, len(won), pairs)


def fit_logistic(
    design: Float64[ndarray, "verdicts terms"],
    won: Float64[ndarray, " verdicts"],
    cluster: Int64[ndarray, " verdicts"],
    *,
    prior: float,
) -> tuple[Float64[ndarray, " terms"], Float64[ndarray, " terms"]]:
    """Fits a logistic regression; returns coefficients and clustered standard errors.

    Args:
        design: design matrix, one row per verdict.
        won: result in [0, 1]; a fraction counts partly as a win and partly as a loss.
        cluster: cluster index of each verdict.
        prior: prior standard deviation of each coefficient, logits; infinite for plain maximum
            likelihood.
    Returns:
        Coefficients and their standard errors, in logits.
    Source:
        McCullagh and Nelder 1989, Generalized Linear Models, section 4.4; clustered errors as in
        Liang and Zeger 1986, doi:10.1093/biomet/73.1.13, times clusters / (clusters - 1).
    """
    from scipy.optimize import minimize  # imports in 0.25 s; only judged tasks need it

    weight = 1 / prior**2

    def loss(terms: Float64[ndarray, " terms"]) -> float:
        logits = design @ terms
        likelihood = won * log_expit(logits) + (1 - won) * log_expit(-logits)
        return float(weight / 2 * terms @ terms - likelihood.sum())

    def gradient(terms: Float64[ndarray, " terms"]) -> Float64[ndarray, " terms"]:
        return weight * terms - design.T @ (won - expit(design @ terms))

    def hessian(terms: Float64[ndarray, " terms"]) -> Float64[ndarray, "terms terms"]:
        probability = expit(design @ terms)
        return weight * np.eye(len(terms)) + (design.T * (probability * (1 - probability))) @ design

    start = np.zeros(design.shape[1])
    coefficients = minimize(
        loss, start, jac=gradient, hess=hessian, method="trust-exact", options=OPTIMIZER_OPTIONS
    ).x
    _, member = np.unique(cluster, return_inverse=True)
    sums = np.zeros((member.max() + 1, len(coefficients)))
    np.add.at(sums, member, design * (won - expit(design @ coefficients))[:, None])
    bread = np.linalg.inv(hessian(coefficients))
    meat = sums.T @ sums * len(sums) / max(len(sums) - 1, 1)
    return coefficients, np.sqrt(np.diag(bread @ meat @ bread))


def _is_separated(
    won: Float64[ndarray, " verdicts"], logits: Float64[ndarray, " verdicts"]
) -> bool:
    """Returns True for complete separation: the fit predicts every decided verdict.

    Source:
        Albert and Anderson 1984, doi:10.1093/biomet/71.1.1: complete separation.
    """
    return bool(((won - 0.5) * logits > 0)[won != 0.5].all())


def _is_constant(values: Float64[ndarray, " values"]) -> bool:
    return bool((values == values[0]).all())


def _length_difference(verdict: Preference) -> int:
    return len(verdict.prompt.pair.candidate) - len(verdict.prompt.pair.reference)
