"""Formulas of the computed metrics, over the scores of any set of tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import exp, inf

from jaxtyping import Float32
from torch import Tensor

from camelpress.reporting.metrics import METRICS
from camelpress.validate.scoring.token_formulas import TOKEN_FORMULAS
from camelpress.validate.scoring.token_scores import TokenScores
from camelpress.validate.statistics.clustered import (
    Estimate,
    bootstrap_mean,
    clustered_mean,
    clustered_share,
)

MAX_LOG = 700.0  # largest logarithm with a finite exponential in fp64
Formula = Callable[[TokenScores], Estimate]


def bounded_exp(log: float) -> float:
    """Returns the exponential, finite even for a broken model."""
    return exp(min(log, MAX_LOG))


def _perplexity(nll: Float32[Tensor, " scored"]) -> Estimate:
    """Computes a perplexity; it has no interval, since texts differ more than models do."""
    return Estimate(bounded_exp(float(nll.double().mean())), -inf, inf, len(nll), 1)


def _perplexity_ratio(scores: TokenScores) -> Estimate:
    """Estimates the exponential of the mean paired difference of log-likelihoods."""
    log_ratio = bootstrap_mean(scores.candidate_nll - scores.reference_nll, scores.cluster)
    mean, low, high = (bounded_exp(log) for log in (log_ratio.mean, log_ratio.low, log_ratio.high))
    return replace(log_ratio, mean=mean, low=low, high=high)


def _divergence(values: Float32[Tensor, " scored"], scores: TokenScores) -> Estimate:
    """Estimates a mean divergence; its interval is clipped at 0."""
    estimate = bootstrap_mean(values, scores.cluster)
    return replace(estimate, low=max(0.0, estimate.low)) if estimate.interval else estimate


def _share(values: Float32[Tensor, " scored"], scores: TokenScores) -> Estimate:
    """Estimates a mean of values in [0, 1]."""
    return clustered_share(values, scores.cluster)


# fmt: off
FORMULAS: dict[str, Formula] = {
    "reference_perplexity": lambda scores: _perplexity(scores.reference_nll),
    "candidate_perplexity": lambda scores: _perplexity(scores.candidate_nll),
    "perplexity_ratio":     _perplexity_ratio,
    "kl_mean":              lambda scores: _divergence(scores.kl, scores),
    "kl_reverse_mean":      lambda scores: _divergence(scores.kl_reverse, scores),
    "top1_agreement":       lambda scores: _share(scores.same_top1.float(), scores),
    "top5_agreement":       lambda scores: _share(scores.top5_overlap, scores),
}
# fmt: on


def estimate_metrics(scores: TokenScores) -> dict[str, Estimate | None]:
    """Estimates all computed metrics, in the order of their table.

    A metric of `TOKEN_FORMULAS` is the clustered mean of its numbers, unless `FORMULAS` has its
    key, too. It is None against a store, which has no distributions.
    """
    return {
        key: _estimate_metric(key, scores) for key, metric in METRICS.items() if metric.is_computed
    }


def _estimate_metric(key: str, scores: TokenScores) -> Estimate | None:
    if key in TOKEN_FORMULAS and bool(scores.of_formula(key).isnan().any()):
        return None
    if key in FORMULAS:
        return FORMULAS[key](scores)
    return clustered_mean(scores.of_formula(key), scores.cluster)
