"""How far two next-token distributions are apart, and what the tokens that came cost in each.

Both divergences are sums of p·φ(q/p) over the vocabulary, with φ(r) = r - 1 - ln r for
KL(p || q) and φ(r) = r·ln r - r + 1 for KL(q || p). As both distributions sum to one, these are
the usual sums of p·ln(p/q); but no term is negative, so that nothing cancels where the models
almost agree, and the terms may be sampled. `divergences` says how they are computed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

AGREEMENT_TOP_K = 5  # tokens whose agreement is counted
TOP_K_GROUPS = 128  # of a vocabulary, in which the likeliest tokens are sought
MAX_LOG_DIFFERENCE = 1e30  # a difference of logarithms that is as good as infinite
MAX_EXP_INPUT = 80.0  # of a logarithm whose exponential fp32 can hold
SMALL_LOG_DIFFERENCE = 1.0  # nats; a smaller difference of logarithms is a small one


class TokenMetrics(NamedTuple):
    """Figures of each prediction of a chunk."""

    reference_nll: Float32[Tensor, " chunk"]  # -ln p(token that came), nats
    candidate_nll: Float32[Tensor, " chunk"]
    kl: Float32[Tensor, " chunk"]  # KL(reference || candidate), nats
    kl_reverse: Float32[Tensor, " chunk"]
    same_top1: Bool[Tensor, " chunk"]
    top5_overlap: Float32[
        Tensor, " chunk"
    ]  # share of the reference's five likeliest in the candidate's
    confidence: Float32[Tensor, " chunk"]  # probability of the reference's likeliest token

    @classmethod
    def allocate(cls, count: int) -> TokenMetrics:
        """Where the figures of so many predictions will stand, on the CPU.

        To be made before there is anything large that is freed meanwhile: what stands between that
        keeps the allocator from using it again, and memory would grow with the text.
        """
        return cls(*(torch.empty(count, dtype=_TYPES.get(name)) for name in cls._fields))

    def write(self, places: slice, found: TokenMetrics) -> None:
        """Store the figures of a chunk, which would otherwise stand in the way as well."""
        for column, some in zip(self, found, strict=True):
            column[places] = some.cpu()


_TYPES = {"same_top1": torch.bool}  # all else is fp32


class TopKLogProbs(NamedTuple):
    """What a store has of the reference's predictions: the likeliest tokens, and drawn ones.

    Logarithms are natural. `rest` is that of the mass outside `ids`, -inf where there is none.
    """

    ids: Int64[Tensor, "chunk kept"]  # the likeliest first
    log_p: Float32[Tensor, "chunk kept"]
    drawn: Int64[Tensor, "chunk samples"]  # from the others, each by its probability
    drawn_log_p: Float32[Tensor, "chunk samples"]
    rest: Float32[Tensor, " chunk"]
    nll: Float32[Tensor, " chunk"]  # of the token that came


class BoundedMetrics(NamedTuple):
    """Figures from a store, and what the divergence cannot be below or above."""

    metrics: TokenMetrics
    kl_lower: Float32[Tensor, " chunk"]
    kl_upper: Float32[Tensor, " chunk"]


def compare_log_probs(
    reference: Float32[Tensor, "chunk vocabulary"],
    candidate: Float32[Tensor, "chunk vocabulary"],
    targets: Int64[Tensor, " chunk"],
) -> TokenMetrics:
    """Every figure, from the log-probabilities of both."""
    likeliest = top_k_ids(reference, AGREEMENT_TOP_K)
    return TokenMetrics(
        _negative_log_likelihood(reference, targets),
        _negative_log_likelihood(candidate, targets),
        *kl_divergences(reference, candidate),
        *_top_k_agreement(likeliest, candidate),
        reference.gather(1, likeliest[:, :1]).squeeze(1).exp(),
    )


def kl_divergences(
    log_p: Float32[Tensor, "chunk some"], log_q: Float32[Tensor, "chunk some"]
) -> tuple[Float32[Tensor, " chunk"], Float32[Tensor, " chunk"]]:
    """KL(p || q) and KL(q || p), of the tokens given: sums of terms that are not negative.

    With d = |ln q/p| and m the larger of p and q, the term of a token is m·a in the divergence from
    the larger to the smaller, and m·b in the other, where

        a = exp(-d) - 1 + d        b = 1 - exp(-d)·(1 + d)

    are both d²/2 for small d, and keep their digits there with expm1(-d). Nothing overflows.
    """
    larger = torch.maximum(log_p, log_q)
    minus_d = torch.minimum(log_p, log_q).sub_(larger).clamp_(min=-MAX_LOG_DIFFERENCE)
    larger.exp_()
    less = torch.expm1(minus_d)
    both = torch.mul(minus_d, less)  # a + b
    a = less.sub_(minus_d)
    b = both.sub_(a).mul_(larger)
    a.mul_(larger)
    upwards = torch.gt(log_q, log_p, out=minus_d)  # 1 where q is larger, 0 where p is
    return torch.lerp(a, b, upwards).sum(dim=-1), torch.lerp(b, a, upwards).sum(dim=-1)


def top_k_ids(
    values: Float32[Tensor, "chunk vocabulary"], count: int
) -> Int64[Tensor, "chunk count"]:
    """Where the largest of each row are, the largest first.

    They are in the groups that have the largest maxima, of which there are as many; the few that
    do not fill a group are looked at, too.
    """
    size = values.shape[1] // TOP_K_GROUPS
    if size <= count:
        return values.topk(count).indices
    whole = size * TOP_K_GROUPS
    best = values[:, :whole].unflatten(1, (TOP_K_GROUPS, size)).amax(dim=-1).topk(count).indices
    inside = torch.arange(size, device=values.device)
    rest = torch.arange(whole, values.shape[1], device=values.device)
    grouped = (best[:, :, None] * size + inside).flatten(1)
    ids = torch.cat([grouped, rest.expand(len(values), -1)], dim=1)
    return ids.gather(1, values.gather(1, ids).topk(count).indices)


def truncate_to_top_k(
    reference: Float32[Tensor, "chunk vocabulary"],
    targets: Int64[Tensor, " chunk"],
    *,
    top_k: int,
    samples: int,
    places: Float64[Tensor, " chunk"],
) -> TopKLogProbs:
    """What of a reference's log-probabilities a store has.

    The drawn tokens stand at even distances in the cumulated mass of the remainder, from a random
    place on: each is drawn by its probability, and they are spread better than independent ones.

    Args:
        reference: log-probabilities.
        targets: the tokens that came.
        top_k: how many of the likeliest tokens are kept.
        samples: drawn from the others; none where there is no other.
        places: in [0, 1), where drawing begins.
    """
    top = reference.topk(top_k)
    others = reference.scatter(1, top.indices, -torch.inf)
    samples = samples if top_k < reference.shape[1] else 0
    mass = others.double().exp().cumsum(dim=-1)
    steps = torch.arange(samples, dtype=torch.float64, device=mass.device)
    wanted = (steps + places[:, None]) / max(1, samples) * mass[:, -1:]
    drawn = torch.searchsorted(mass, wanted, right=True).clamp(max=reference.shape[1] - 1)
    return TopKLogProbs(
        top.indices,
        top.values,
        drawn,
        reference.gather(1, drawn),
        mass[:, -1].log().float(),
        _negative_log_likelihood(reference, targets),
    )


def compare_with_top_k(
    kept: TopKLogProbs,
    candidate: Float32[Tensor, "chunk vocabulary"],
    targets: Int64[Tensor, " chunk"],
) -> BoundedMetrics:
    """Every figure, from a store's part of the reference.

    The divergences of the likeliest tokens are exact. Those of the others are estimated from the
    drawn ones. KL(reference || candidate) is the mean of φ, without bias, where both give the
    others about the same mass. Elsewhere it comes from the masses and the mean of ln(q/p), which
    rare tokens cannot upset, and is no less than zero: where chance would take it below, it is too
    large. The reverse is no less than the masses say.

    Bounds of KL(reference || candidate): by the log-sum inequality the others diverge no less than
    their masses do; and they cost no more than if each had the probability of the last kept token,
    and the candidate's least.
    """
    log_q = candidate.gather(1, kept.ids)
    others = candidate.scatter(1, kept.ids, -torch.inf)
    rest_q = others.logsumexp(dim=-1)
    exact, exact_reverse = kl_divergences(kept.log_p, log_q)
    empty = kept.rest.isneginf() | rest_q.isneginf()
    rest, rest_q = (each.masked_fill(empty, -MAX_LOG_DIFFERENCE) for each in (kept.rest, rest_q))
    least = candidate.scatter(1, kept.ids, torch.inf).amin(dim=-1).masked_fill(empty, 0.0)
    most = torch.minimum(kept.log_p[:, -1], rest)
    above = rest.exp() * (most - least) + rest_q.exp() - rest.exp()
    log_ratio = (candidate.gather(1, kept.drawn) - kept.drawn_log_p).clamp(max=MAX_EXP_INPUT)
    mass, mass_q = rest.exp(), rest_q.exp()
    near = (rest - rest_q).abs() < SMALL_LOG_DIFFERENCE
    linear = (mass_q - mass - mass * _sample_mean(log_ratio)).clamp(min=0)
    less = log_ratio.expm1()
    others_kl = torch.where(near, mass * _sample_mean(less - log_ratio), linear)
    least_kl, least_reverse = kl_divergences(rest[:, None], rest_q[:, None])
    reverse = torch.maximum(mass * _sample_mean(log_ratio * (less + 1) - less), least_reverse)
    compared = TokenMetrics(
        kept.nll,
        _negative_log_likelihood(candidate, targets),
        exact + others_kl,
        exact_reverse + reverse,
        *_top_k_agreement(kept.ids[:, :AGREEMENT_TOP_K], candidate),
        kept.log_p[:, 0].exp(),
    )
    lower = exact + least_kl
    return BoundedMetrics(compared, lower, torch.maximum(lower, exact + above))


def _sample_mean(values: Float32[Tensor, "chunk samples"]) -> Float32[Tensor, " chunk"]:
    """Over the drawn tokens; 0 where none was drawn."""
    return values.sum(dim=-1) / max(1, values.shape[1])


def _negative_log_likelihood(
    log_probabilities: Float32[Tensor, "chunk vocabulary"], targets: Int64[Tensor, " chunk"]
) -> Float32[Tensor, " chunk"]:
    return -log_probabilities.gather(1, targets[:, None]).squeeze(1)


def _top_k_agreement(
    likeliest: Int64[Tensor, "chunk top"], candidate: Float32[Tensor, "chunk vocabulary"]
) -> tuple[Bool[Tensor, " chunk"], Float32[Tensor, " chunk"]]:
    """Whether the first is the same, and the share of the first five that both have."""
    own = top_k_ids(candidate, AGREEMENT_TOP_K)
    both = (likeliest[:, :, None] == own[:, None, :]).any(dim=-1)
    return likeliest[:, 0] == own[:, 0], both.float().mean(dim=-1)
