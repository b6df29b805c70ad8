"""Attention of many texts at once, to what some of them begin with alike and to what is their own.

Keys and values of a common beginning are kept once and read once for all texts that have it; so a
hundred questions after the same examples cost hardly more than one. The softmax over both parts is
put together from those of each, which is exact.

Source: Juravsky et al., arXiv:2402.05099 (common beginnings); Dao et al., arXiv:2205.14135, section
3.1 (a softmax from its parts).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from camelpress.inference.model.streamed_model import StreamedModel

TILE_SCORES = 2**18  # scores of a head at once, so that they stay in a processor's cache


class KeyValueCache:
    """Keys and values of rows of tokens, in room that is laid out at once.

    Args:
        model: whose they are.
        rows: side by side.
        room: tokens of a row, at most.
        blocks: whose keys and values are kept, from the one that is written to backwards.
    """

    def __init__(self, model: StreamedModel, *, rows: int, room: int, blocks: int) -> None:
        config = model.config
        heads = int(config.num_attention_heads)
        shared = int(getattr(config, "num_key_value_heads", None) or heads)
        width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        self._kept = [
            [
                torch.zeros(rows, shared, room, width, dtype=model.dtype, device=model.device)
                for _ in ("keys", "values")
            ]
            for _ in range(blocks)
        ]

    def write(
        self,
        block: int,
        rows: slice,
        begun: Int64[Tensor, " rows"],
        keys: Float[Tensor, "rows kv new d"],
        values: Float[Tensor, "rows kv new d"],
    ) -> None:
        """Add tokens to rows that have so many already."""
        row = torch.arange(len(begun), device=begun.device)[:, None]
        place = begun[:, None] + torch.arange(keys.shape[2], device=begun.device)
        for kept, new in zip(self._of(block), (keys, values), strict=True):
            kept[rows][row, :, place] = new.transpose(1, 2)

    def read(
        self, block: int, rows: slice, tokens: int
    ) -> tuple[Float[Tensor, "rows kv tokens d"], Float[Tensor, "rows kv tokens d"]]:
        """Keys and values of the first tokens of rows."""
        keys, values = self._of(block)
        return keys[rows, :, :tokens], values[rows, :, :tokens]

    def copy_row(self, source: int, target: int, tokens: int) -> None:
        """Put the first tokens of one row in another's place."""
        for kept in (each for block in self._kept for each in block):
            kept[target, :, :tokens] = kept[source, :, :tokens]

    def _of(self, block: int) -> list[Tensor]:
        return self._kept[block % len(self._kept)]


class SharedPrefix(NamedTuple):
    """What some rows begin with alike."""

    rows: Int64[Tensor, " some"]
    keys: Float[Tensor, "kv tokens d"]
    values: Float[Tensor, "kv tokens d"]


class _PartialSoftmax(NamedTuple):
    """Attention to some keys: of each query the largest score, and sums relative to it."""

    max_score: Float32[Tensor, "*rows queries 1"]
    exp_sum: Float32[Tensor, "*rows queries 1"]
    weighted_values: Float32[Tensor, "*rows queries d"]


def attend_prefixed(
    query: Float[Tensor, "rows heads new d"],
    keys: Float[Tensor, "rows kv tokens d"],
    values: Float[Tensor, "rows kv tokens d"],
    begun: Int64[Tensor, " rows"],
    beginnings: Sequence[SharedPrefix],
    *,
    scaling: float,
) -> Float[Tensor, "rows new context"]:
    """What each query takes from the values of all tokens up to its own.

    Args:
        query: of the newest tokens of each row.
        keys, values: of the rows themselves, the newest included; what lies behind is not seen.
        begun: tokens of its own that a row had before the newest.
        beginnings: what rows begin with besides; all of it is seen. A row is in one at most.
        scaling: of products of queries and keys.
    """
    rows, heads, new, width = query.shape
    if new == keys.shape[2] > 1 and not beginnings:  # all that there is: as everywhere
        mixed = nn.functional.scaled_dot_product_attention(
            query, keys, values, is_causal=True, scale=scaling, enable_gqa=True
        )
        return mixed.transpose(1, 2).flatten(2)
    shared = keys.shape[1]
    query = (query * scaling).reshape(rows, shared, -1, width)  # heads with the same keys together
    scores = (query @ keys.mT).float().unflatten(2, (-1, new))
    last = begun[:, None] + torch.arange(new, device=begun.device)
    later = torch.arange(keys.shape[2], device=begun.device) > last[:, :, None]
    scores = scores.masked_fill_(later[:, None, None], float("-inf")).flatten(2, 3)
    found = _partial_attention(scores, values)
    for beginning in beginnings:
        some = query[beginning.rows].transpose(0, 1).flatten(1, 2)  # one matrix for each key head
        tiles = [
            _partial_attention((tile @ beginning.keys.mT).float(), beginning.values)
            for tile in some.split(max(1, TILE_SCORES // beginning.keys.shape[1]), dim=1)
        ]
        apart = (len(beginning.rows), query.shape[2])
        part = (torch.cat(each, dim=1).unflatten(1, apart) for each in zip(*tiles, strict=True))
        _merge_partial(found, beginning.rows, _PartialSoftmax(*part))
    mixed = (found.weighted_values / found.exp_sum).to(values.dtype)
    return mixed.view(rows, heads, new, width).transpose(1, 2).flatten(2)


def _partial_attention(
    scores: Float32[Tensor, "*rows queries tokens"], values: Float[Tensor, "*rows tokens d"]
) -> _PartialSoftmax:
    top = scores.amax(dim=-1, keepdim=True)
    weights = (scores - top).exp_()
    value = (weights.to(values.dtype) @ values).float()
    return _PartialSoftmax(top, weights.sum(dim=-1, keepdim=True), value)


def _merge_partial(
    found: _PartialSoftmax, rows: Int64[Tensor, " some"], part: _PartialSoftmax
) -> None:
    """Take more keys into the attention of some rows, in place; `part` has key heads first."""
    part = _PartialSoftmax(*(each.transpose(0, 1) for each in part))
    own = _PartialSoftmax(*(each[rows] for each in found))
    top = own.max_score.maximum(part.max_score)
    before, after = (own.max_score - top).exp(), (part.max_score - top).exp()
    found.max_score[rows] = top
    found.exp_sum[rows] = own.exp_sum * before + part.exp_sum * after
    found.weighted_values[rows] = own.weighted_values * before + part.weighted_values * after
