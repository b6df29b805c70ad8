"""Reduces reference predictions to their likeliest tokens, and compares candidates with these."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from camelpress.validate.scoring.divergence import (
    AGREEMENT_TOP_K,
    MAX_LOG_DIFFERENCE,
    TokenMetrics,
    kl_divergences,
    negative_log_likelihood,
    top_k_agreement,
)
from camelpress.validate.scoring.token_formulas import unknown_formula_values

MAX_EXP_INPUT = 80.0  # largest logarithm with a finite exponential in fp32
SMALL_LOG_DIFFERENCE = 1.0  # nats; limit of similar logarithms of the remainder mass


class TopKLogProbs(NamedTuple):
    """Reference predictions in a store: the likeliest tokens and a sample of the others.

    All logarithms are natural. `rest` is the logarithm of the probability mass outside `ids`; -inf
    if there is none.
    """

    ids: Int64[Tensor, "chunk kept"]  # by falling probability
    log_p: Float32[Tensor, "chunk kept"]
    drawn: Int64[Tensor, "chunk samples"]  # sampled from the others by probability
    drawn_log_p: Float32[Tensor, "chunk samples"]
    rest: Float32[Tensor, " chunk"]
    nll: Float32[Tensor, " chunk"]  # -ln p(target), nats


class BoundedMetrics(NamedTuple):
    """Metrics from a store, with a lower and an upper bound of the divergence."""

    metrics: TokenMetrics
    kl_lower: Float32[Tensor, " chunk"]
    kl_upper: Float32[Tensor, " chunk"]


def truncate_to_top_k(
    reference: Float32[Tensor, "chunk vocabulary"],
    targets: Int64[Tensor, " chunk"],
    *,
    top_k: int,
    samples: int,
    offsets: Float64[Tensor, " chunk"],
) -> TopKLogProbs:
    """Reduces the log-probabilities of a reference to the likeliest tokens and a sample.

    The sampled tokens lie at equal distances in the cumulative mass of the remainder, from a random
    offset: each is drawn with its probability, and they are spread more evenly than independent
    draws.

    Args:
        reference: log-probabilities.
        targets: ids of the target tokens.
        top_k: number of likeliest tokens to keep.
        samples: number of tokens drawn from the others; no token is drawn if `top_k` covers all.
        offsets: random offset of each prediction in [0, 1).
    """
    top = reference.topk(top_k)
    remainder = reference.scatter(1, top.indices, -torch.inf)
    samples = samples if top_k < reference.shape[1] else 0
    mass = remainder.double().exp().cumsum(dim=-1)
    steps = torch.arange(samples, dtype=torch.float64, device=mass.device)
    levels = (steps + offsets[:, None]) / max(1, samples) * mass[:, -1:]
    sampled = torch.searchsorted(mass, levels, right=True).clamp(max=reference.shape[1] - 1)
    return TopKLogProbs(
        top.indices,
        top.values,
        sampled,
        reference.gather(1, sampled),
        mass[:, -1].log().float(),
        negative_log_likelihood(reference, targets),
    )


def compare_with_top_k(
    stored: TopKLogProbs,
    candidate: Float32[Tensor, "chunk vocabulary"],
    targets: Int64[Tensor, " chunk"],
) -> BoundedMetrics:
    """Computes all metrics from the stored part of the reference.

    The divergences of the likeliest tokens are exact. Those of the others are estimated from the
    sample. KL(reference || candidate) is the unbiased mean of φ if both models give the others
    similar mass. Otherwise it combines the masses with the mean of ln(q/p), a robust estimate for
    rare tokens, and is clamped at zero; clamping makes it too large. The reverse divergence is at
    least the divergence of the masses.

    Bounds of KL(reference || candidate): by the log-sum inequality the others diverge at least as
    much as their masses. They cost at most as much as if each had the probability of the last
    stored token in the reference and the smallest probability in the candidate.
    """
    log_q = candidate.gather(1, stored.ids)
    remainder = candidate.scatter(1, stored.ids, -torch.inf)
    rest_q = remainder.logsumexp(dim=-1)
    exact, exact_reverse = kl_divergences(stored.log_p, log_q)
    empty = stored.rest.isneginf() | rest_q.isneginf()
    rest, rest_q = (
        log_mass.masked_fill(empty, -MAX_LOG_DIFFERENCE) for log_mass in (stored.rest, rest_q)
    )
    min_log_q = candidate.scatter(1, stored.ids, torch.inf).amin(dim=-1).masked_fill(empty, 0.0)
    max_log_p = torch.minimum(stored.log_p[:, -1], rest)
    excess = rest.exp() * (max_log_p - min_log_q) + rest_q.exp() - rest.exp()
    log_ratio = (candidate.gather(1, stored.drawn) - stored.drawn_log_p).clamp(max=MAX_EXP_INPUT)
    mass, mass_q = rest.exp(), rest_q.exp()
    is_similar = (rest - rest_q).abs() < SMALL_LOG_DIFFERENCE
    linear = (mass_q - mass - mass * _sample_mean(log_ratio)).clamp(min=0)
    expm1_ratio = log_ratio.expm1()
    remainder_kl = torch.where(is_similar, mass * _sample_mean(expm1_ratio - log_ratio), linear)
    mass_kl, mass_reverse = kl_divergences(rest[:, None], rest_q[:, None])
    reverse = torch.maximum(
        mass * _sample_mean(log_ratio * (expm1_ratio + 1) - expm1_ratio), mass_reverse
    )
    metrics = TokenMetrics(
        stored.nll,
        negative_log_likelihood(candidate, targets),
        exact + remainder_kl,
        exact_reverse + reverse,
        *top_k_agreement(stored.ids[:, :AGREEMENT_TOP_K], candidate),
        stored.log_p[:, 0].exp(),
        unknown_formula_values(candidate),
    )
    lower = exact + mass_kl
    return BoundedMetrics(metrics, lower, torch.maximum(lower, exact + excess))


def _sample_mean(values: Float32[Tensor, "chunk samples"]) -> Float32[Tensor, " chunk"]:
    """Returns the mean over the sampled tokens; 0 if there are none."""
    return values.sum(dim=-1) / max(1, values.shape[1])
