"""KV cache and attention for many texts at once, with shared prefixes read once.

Keys and values of a shared prefix are kept once and read once for all texts with this prefix, so
a hundred questions after the same examples cost hardly more than one. The softmax over prefix and
suffix is merged from the partial softmax of each; the merge is exact.

Source: Juravsky et al., arXiv:2402.05099 (shared prefixes); Dao et al., arXiv:2205.14135, section
3.1 (a softmax from its parts).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from camelpress.inference.model.streamed_model import StreamedModel

TILE_SCORES = 2**18  # scores per head and tile, to fit in the CPU cache


class KeyValueCache:
    """Preallocated keys and values for rows of tokens.

    Args:
        model: model of the keys and values.
        rows: number of rows.
        max_tokens: capacity of a row in tokens.
        blocks: number of blocks with keys and values in memory; block numbers wrap around.
    """

    def __init__(self, model: StreamedModel, *, rows: int, max_tokens: int, blocks: int) -> None:
        config = model.config
        heads = int(config.num_attention_heads)
        kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
        width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        self._blocks = [
            [
                torch.zeros(
                    rows, kv_heads, max_tokens, width, dtype=model.dtype, device=model.device
                )
                for _ in ("keys", "values")
            ]
            for _ in range(blocks)
        ]

    def write(
        self,
        block: int,
        rows: slice,
        lengths: Int64[Tensor, " rows"],
        keys: Float[Tensor, "rows kv new d"],
        values: Float[Tensor, "rows kv new d"],
    ) -> None:
        """Appends tokens to rows; `lengths` counts the tokens of each row so far."""
        row = torch.arange(len(lengths), device=lengths.device)[:, None]
        index = lengths[:, None] + torch.arange(keys.shape[2], device=lengths.device)
        for cache, new in zip(self._tensors(block), (keys, values), strict=True):
            cache[rows][row, :, index] = new.transpose(1, 2)

    def read(
        self, block: int, rows: slice, tokens: int
    ) -> tuple[Float[Tensor, "rows kv tokens d"], Float[Tensor, "rows kv tokens d"]]:
        """Returns keys and values of the first tokens of some rows."""
        keys, values = self._tensors(block)
        return keys[rows, :, :tokens], values[rows, :, :tokens]

    def copy_row(self, source: int, target: int, tokens: int) -> None:
        """Copies the first tokens of one row to another."""
        for cache in (tensor for block in self._blocks for tensor in block):
            cache[target, :, :tokens] = cache[source, :, :tokens]

    def _tensors(self, block: int) -> list[Tensor]:
        return self._blocks[block % len(self._blocks)]


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
        output = nn.functional.scaled_dot_product_attention(
            query, keys, values, is_causal=True, scale=scaling, enable_gqa=True
        )
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
