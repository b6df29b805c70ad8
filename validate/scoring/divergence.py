"""Divergence of two next-token distributions, and the likelihood of the target token in each.

Both divergences are sums of p·φ(q/p) over the vocabulary, with φ(r) = r - 1 - ln r for
KL(p || q) and φ(r) = r·ln r - r + 1 for KL(q || p). Both distributions sum to one, so these equal
the usual sums of p·ln(p/q). But no term is negative, so nothing cancels if the models almost
agree, and the terms may be sampled. `kl_divergences` explains the computation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from camelpress.validate.scoring.token_formulas import (
    TOKEN_FORMULAS,
    apply_token_formulas,
)

AGREEMENT_TOP_K = 5  # likeliest tokens compared for the top-5 agreement
TOP_K_GROUPS = 128  # groups of the vocabulary for the search of the likeliest tokens
MAX_LOG_DIFFERENCE = 1e30  # nats; larger differences of logarithms count as infinite


class TokenMetrics(NamedTuple):
    """Metrics of each prediction of a chunk."""

    reference_nll: Float32[Tensor, " chunk"]  # -ln p(target), nats
    candidate_nll: Float32[Tensor, " chunk"]
    kl: Float32[Tensor, " chunk"]  # KL(reference || candidate), nats
    kl_reverse: Float32[Tensor, " chunk"]
    same_top1: Bool[Tensor, " chunk"]
    top5_overlap: Float32[Tensor, " chunk"]  # share of common tokens among the top 5
    confidence: Float32[Tensor, " chunk"]  # reference probability of its likeliest token
    formula_values: Float32[Tensor, "chunk formulas"]  # of `TOKEN_FORMULAS`; NaN if unknown

    @classmethod
    def allocate(cls, count: int) -> TokenMetrics:
        """Allocates empty metrics for `count` predictions on the CPU.

        Allocate before any large temporary tensors: a small tensor between them would keep the
        allocator from reusing their memory, and memory would grow with the text.
        """
        columns = {name: torch.empty(count, dtype=_DTYPES.get(name)) for name in cls._fields}
        return cls(**columns | {"formula_values": torch.empty(count, len(TOKEN_FORMULAS))})

    def write(self, rows: slice, metrics: TokenMetrics) -> None:
        """Copies the metrics of a chunk into their rows, so the chunk itself can be freed."""
        for column, values in zip(self, metrics, strict=True):
            column[rows] = values.cpu()


_DTYPES = {"same_top1": torch.bool}  # all other columns are fp32


def compare_log_probs(
    reference: Float32[Tensor, "chunk vocabulary"],
    candidate: Float32[Tensor, "chunk vocabulary"],
    targets: Int64[Tensor, " chunk"],
) -> TokenMetrics:
    """Computes all metrics from the log-probabilities of both models."""
    likeliest = top_k_ids(reference, AGREEMENT_TOP_K)
    return TokenMetrics(
        negative_log_likelihood(reference, targets),
        negative_log_likelihood(candidate, targets),
        *kl_divergences(reference, candidate),
        *top_k_agreement(likeliest, candidate),
        reference.gather(1, likeliest[:, :1]).squeeze(1).exp(),
        apply_token_formulas(reference, candidate, targets),
    )


def kl_divergences(
    log_p: Float32[Tensor, "chunk tokens"], log_q: Float32[Tensor, "chunk tokens"]
) -> tuple[Float32[Tensor, " chunk"], Float32[Tensor, " chunk"]]:
    """Computes KL(p || q) and KL(q || p) over the given tokens, as sums of non-negative terms.

    With d = |ln q/p| and m the larger of p and q, the term of a token is m·a in the divergence from
    the larger to the smaller, and m·b in the reverse, with

        a = exp(-d) - 1 + d        b = 1 - exp(-d)·(1 + d)

    Both are d²/2 for small d, and expm1(-d) keeps their digits there. Nothing overflows.
    """
    log_max = torch.maximum(log_p, log_q)
    minus_d = torch.minimum(log_p, log_q).sub_(log_max).clamp_(min=-MAX_LOG_DIFFERENCE)
    log_max.exp_()
    expm1_d = torch.expm1(minus_d)
    a_plus_b = torch.mul(minus_d, expm1_d)  # a + b
    a = expm1_d.sub_(minus_d)
    b = a_plus_b.sub_(a).mul_(log_max)
    a.mul_(log_max)
    q_is_larger = torch.gt(log_q, log_p, out=minus_d)  # 1 if q is larger, else 0
    return torch.lerp(a, b, q_is_larger).sum(dim=-1), torch.lerp(b, a, q_is_larger).sum(dim=-1)


def top_k_ids(
    values: Float32[Tensor, "chunk vocabulary"], count: int
) -> Int64[Tensor, "chunk count"]:
    """Returns the indices of the `count` largest values of each row, the largest first.

    The values are searched in the `count` groups with the largest maxima, and in the few columns
    that do not fill a group.
    """
    group_size = values.shape[1] // TOP_K_GROUPS
    if group_size <= count:
        return values.topk(count).indices
    grouped_columns = group_size * TOP_K_GROUPS
    best_groups = (
        values[:, :grouped_columns]
        .unflatten(1, (TOP_K_GROUPS, group_size))
        .amax(dim=-1)
        .topk(count)
        .indices
    )
    group_offsets = torch.arange(group_size, device=values.device)
    other_ids = torch.arange(grouped_columns, values.shape[1], device=values.device)
    group_ids = (best_groups[:, :, None] * group_size + group_offsets).flatten(1)
    ids = torch.cat([group_ids, other_ids.expand(len(values), -1)], dim=1)
    return ids.gather(1, values.gather(1, ids).topk(count).indices)


def negative_log_likelihood(
    log_probabilities: Float32[Tensor, "chunk vocabulary"], targets: Int64[Tensor, " chunk"]
) -> Float32[Tensor, " chunk"]:
    """Returns -ln p(target) of each prediction, in nats."""
    return -log_probabilities.gather(1, targets[:, None]).squeeze(1)


def top_k_agreement(
    likeliest: Int64[Tensor, "chunk top"], candidate: Float32[Tensor, "chunk vocabulary"]
) -> tuple[Bool[Tensor, " chunk"], Float32[Tensor, " chunk"]]:
    """Returns the top-1 agreement, and the share of common tokens among the top 5."""
    candidate_ids = top_k_ids(candidate, AGREEMENT_TOP_K)
    is_shared = (likeliest[:, :, None] == candidate_ids[:, None, :]).any(dim=-1)
    return likeliest[:, 0] == candidate_ids[:, 0], is_shared.float().mean(dim=-1)
