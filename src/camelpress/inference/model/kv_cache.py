"""Keys and values of the tokens of many texts, kept between forward passes."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from camelpress.inference.model.streamed_model import StreamedModel


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
