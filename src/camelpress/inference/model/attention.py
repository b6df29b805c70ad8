"""Causal attention within each of several concatenated sequences, without a mask."""

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
        output = scaled_dot_product_attention(
            q,
            k,
            v,
            is_causal=True,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        parts.append(output.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts)[None], None
