"""Causal attention: within concatenated sequences, and over cached tokens with shared prefixes.

Keys and values of a shared prefix are kept once and read once for all texts with this prefix, so
a hundred questions after the same examples cost hardly more than one. The softmax over prefix and
suffix is merged from the partial softmax of each; the merge is exact.

Source: Juravsky et al., arXiv:2402.05099 (shared prefixes); Dao et al., arXiv:2205.14135, section
3.1 (a softmax from its parts).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

IMPLEMENTATION = "end_to_end"
TILE_SCORES = 2**18  # scores per head and tile, to fit in the CPU cache


class SharedPrefix(NamedTuple):
    """Keys and values of a prefix shared by some rows."""

    rows: Int64[Tensor, " some"]
    keys: Float[Tensor, "kv tokens d"]
    values: Float[Tensor, "kv tokens d"]


class _PartialSoftmax(NamedTuple):
    """Attention to some keys: the largest score of each query, and sums relative to it."""

    max_score: Float32[Tensor, "*rows queries 1"]
    exp_sum: Float32[Tensor, "*rows queries 1"]
    weighted_values: Float32[Tensor, "*rows queries d"]


def register_attention() -> str:
    """Registers `attend_packed` with transformers, and returns its name for a config."""
    from transformers import AttentionInterface  # takes 2 s to import, only needed to run a model

    AttentionInterface.register(IMPLEMENTATION, attend_packed)
    return IMPLEMENTATION


def attend_packed(
    module: object,
    query: Float[Tensor, "1 heads tokens width"],
    key: Float[Tensor, "1 shared tokens width"],
    value: Float[Tensor, "1 shared tokens width"],
    attention_mask: None,
    *,
    lengths: Sequence[int],
    scaling: float,
    **_: Any,
) -> tuple[Float[Tensor, "1 tokens heads width"], None]:
    """Computes attention within each sequence; neighbours of equal length form one batch.

    transformers calls it between the projections.

    Args:
        module: unused.
        query, key, value: rotated queries and keys, and values, of all sequences concatenated.
        attention_mask: unused, None.
        lengths: tokens of each sequence.
        scaling: factor of the products of queries and keys.
    Returns:
        the attention output, and None for the weights.
    """
    parts, start = [], 0
    for length, group in groupby(lengths):
        count = len(list(group))
        part = slice(start, start + count * length)
        start = part.stop
        q, k, v = (
            tensor[0, :, part].unflatten(1, (count, length)).transpose(0, 1)
            for tensor in (query, key, value)
        )
        is_grouped = query.shape[1] != key.shape[1]
        output = _attend_causally(q, k, v, scaling=scaling, enable_gqa=is_grouped)
        parts.append(output.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts)[None], None


def attend_prefixed(
    query: Float[Tensor, "rows heads new d"],
    keys: Float[Tensor, "rows kv tokens d"],
    values: Float[Tensor, "rows kv tokens d"],
    lengths: Int64[Tensor, " rows"],
    prefixes: Sequence[SharedPrefix],
    *,
    scaling: float,
) -> Float[Tensor, "rows new context"]:
    """Computes the attention of each query to its prefix and to all tokens of its row up to itself.

    Args:
        query: queries of the new tokens of each row.
        keys, values: keys and values of the rows, with the new tokens; later ones are masked.
        lengths: tokens of each row before the new ones, without its prefix.
        prefixes: shared prefixes, visible as a whole; a row has one at most.
        scaling: factor of the products of queries and keys.
    """
    rows, heads, new, width = query.shape
    if new == keys.shape[2] > 1 and not prefixes:  # no cached tokens: plain causal attention
        output = _attend_causally(query, keys, values, scaling=scaling, enable_gqa=True)
        return output.transpose(1, 2).flatten(2)
    kv_heads = keys.shape[1]
    query = (query * scaling).reshape(
        rows, kv_heads, -1, width
    )  # groups the heads with the same keys
    scores = (query @ keys.mT).float().unflatten(2, (-1, new))
    last = lengths[:, None] + torch.arange(new, device=lengths.device)
    is_later = torch.arange(keys.shape[2], device=lengths.device) > last[:, :, None]
    scores = scores.masked_fill_(is_later[:, None, None], float("-inf")).flatten(2, 3)
    total = _partial_attention(scores, values)
    for prefix in prefixes:
        prefix_query = query[prefix.rows].transpose(0, 1).flatten(1, 2)  # one matrix per key head
        tiles = [
            _partial_attention((tile @ prefix.keys.mT).float(), prefix.values)
            for tile in prefix_query.split(max(1, TILE_SCORES // prefix.keys.shape[1]), dim=1)
        ]
        shape = (len(prefix.rows), query.shape[2])
        part = (
            torch.cat(tensors, dim=1).unflatten(1, shape) for tensors in zip(*tiles, strict=True)
        )
        _merge_partial(total, prefix.rows, _PartialSoftmax(*part))
    output = (total.weighted_values / total.exp_sum).to(values.dtype)
    return output.view(rows, heads, new, width).transpose(1, 2).flatten(2)


def _attend_causally(
    query: Float[Tensor, "rows heads tokens width"],
    key: Float[Tensor, "rows shared tokens width"],
    value: Float[Tensor, "rows shared tokens width"],
    *,
    scaling: float,
    enable_gqa: bool,
) -> Float[Tensor, "rows heads tokens width"]:
    """Computes the attention of each token to its row up to itself.

    On CUDA, `enable_gqa` decides which kernel runs, and so the last bits.
    """
    return scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scaling, enable_gqa=enable_gqa
    )


def _partial_attention(
    scores: Float32[Tensor, "*rows queries tokens"], values: Float[Tensor, "*rows tokens d"]
) -> _PartialSoftmax:
    max_score = scores.amax(dim=-1, keepdim=True)
    weights = (scores - max_score).exp_()
    value = (weights.to(values.dtype) @ values).float()
    return _PartialSoftmax(max_score, weights.sum(dim=-1, keepdim=True), value)


def _merge_partial(
    total: _PartialSoftmax, rows: Int64[Tensor, " some"], part: _PartialSoftmax
) -> None:
    """Merges the attention to more keys into some rows in place; `part` has key heads first."""
    part = _PartialSoftmax(*(column.transpose(0, 1) for column in part))
    current = _PartialSoftmax(*(column[rows] for column in total))
    max_score = current.max_score.maximum(part.max_score)
    current_scale, part_scale = (
        (current.max_score - max_score).exp(),
        (part.max_score - max_score).exp(),
    )
    total.max_score[rows] = max_score
    total.exp_sum[rows] = current.exp_sum * current_scale + part.exp_sum * part_scale
    total.weighted_values[rows] = (
        current.weighted_values * current_scale + part.weighted_values * part_scale
    )
