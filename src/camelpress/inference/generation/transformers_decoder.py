"""Decoder of one row on a whole transformers model, with the key-value cache of a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from camelpress.inference.generation.decoder import Logits
from camelpress.inference.generation.prefixes import PrefixedText


class TransformersDecoder:
    """Decoder of one row; a text reuses keys and values of the tokens it shares with the last row.

    Args:
        model: model of transformers.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model: Any = model
        self._cache = DynamicCache()
        self._cached_ids: list[int] = []  # tokens with keys and values in the cache
        self.reused_tokens = 0  # tokens of the last text with keys and values of the row before

    def reset(self, rows: int, row_tokens: int) -> None:
        """Drops the row; the cache grows as needed and stays for the next text."""
        self.reused_tokens = 0

    def prefill(self, texts: Sequence[PrefixedText]) -> Logits:
        """Replaces the row by a text, and returns its logits."""
        ((prefix, suffix),) = texts
        ids = [*prefix, *suffix]
        self.reused_tokens = self._crop_cache(ids)
        return self._forward(ids[self.reused_tokens :])

    def step(self, tokens: Sequence[int]) -> Logits:
        """Appends a token to the row, and returns the logits."""
        return self._forward(tokens)

    def drop_row(self, row: int) -> None:
        """Drops the row; its keys and values stay for the next text."""

    def _crop_cache(self, ids: Sequence[int]) -> int:
        """Crops the cache to its common prefix with a text; returns the prefix's tokens."""
        length = self._cache.get_seq_length()
        limit = min(length, len(self._cached_ids), len(ids) - 1)
        prefix = next((n for n in range(limit) if ids[n] != self._cached_ids[n]), limit)
        if not prefix:
            self._cache = DynamicCache()
        elif prefix < length:
            self._cache.crop(prefix - length)  # negative: number of tokens to drop
        self._cached_ids = self._cached_ids[:prefix]
        return prefix

    def _forward(self, tokens: Sequence[int]) -> Logits:
        """Appends tokens to the cache, and returns the logits of the last one.

        An interruption leaves different numbers of tokens in the layers, so the cache counts as
        empty until the end of the pass.
        """
        cached_ids, self._cached_ids = [*self._cached_ids, *tokens], []
        ids = torch.tensor([[*tokens]], device=self._model.device)
        with torch.inference_mode():
            logits = self._model(
                ids,
                attention_mask=ids.new_ones(1, len(cached_ids)),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits
        self._cached_ids = cached_ids
        return logits[:, -1].float()
