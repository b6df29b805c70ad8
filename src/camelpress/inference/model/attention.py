"""Causal attention within each of several sequences that stand end to end, without a mask."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

IMPLEMENTATION = "end_to_end"


def register_attention() -> str:
    """Make transformers know it; the name by which a config asks for it."""
    from transformers import AttentionInterface  # two seconds, and not every command runs a model

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
    """What transformers calls between the projections; neighbours of one length go together.

    Args:
        module: not needed here, nor is the mask.
        query, key, value: rotated, of all sequences end to end.
        attention_mask: None.
        lengths: of the sequences, in tokens.
        scaling: of the products.
    Returns:
        the values, mixed, and no weights.
    """
    parts, start = [], 0
    for length, alike in groupby(lengths):
        count = len(list(alike))
        part = slice(start, start + count * length)
        start = part.stop
        q, k, v = (
            each[0, :, part].unflatten(1, (count, length)).transpose(0, 1)
            for each in (query, key, value)
        )
        mixed = scaled_dot_product_attention(
            q,
            k,
            v,
            is_causal=True,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        parts.append(mixed.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts)[None], None
