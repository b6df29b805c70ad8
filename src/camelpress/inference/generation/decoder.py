"""Decodes many texts at once, one token per text and step, with a KV cache.

The blocks are in memory, or are read again for each pass if they do not fit. Each pass runs all new
tokens through one block after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from camelpress.core.progress import track
from camelpress.inference.generation.prefixes import PrefixedText
from camelpress.inference.generation.token_chunks import (
    ChunkBuilder,
    TokenChunk,
    chunk_texts,
    run_chunks,
)
from camelpress.inference.model.kv_cache import KeyValueCache
from camelpress.inference.model.streamed_model import DecoderBlock, StreamedModel

Logits = Float32[Tensor, "rows vocabulary"]


@runtime_checkable
class Decoder(Protocol):
    """Returns logits for the next token of each row; rows are added and dropped."""

    def reset(self, rows: int, row_tokens: int) -> None:
        """Drops all rows, and allocates `rows` rows of `row_tokens` suffix tokens."""

    def prefill(self, texts: Sequence[PrefixedText]) -> Logits:
        """Adds texts as the last rows, and returns their logits."""

    def step(self, tokens: Sequence[int]) -> Logits:
        """Appends a token to each row, and returns the logits."""

    def drop_row(self, row: int) -> None:
        """Drops a row; the last row takes its index."""


class StreamedDecoder:
    """Decoder of a streamed model.

    Args:
        model: the streamed model.
        label: name of the model in progress bars.
        in_memory: keep all blocks in memory.
    """

    def __init__(self, model: StreamedModel, label: str, *, in_memory: bool) -> None:
        self._model = model
        self._label = label
        self._loaded_blocks: list[DecoderBlock] | None = None
        if in_memory:
            self._loaded_blocks = [
                model.read_block(number) for number in track(range(model.block_count), "load")
            ]
        self._table = model.read_embedding().to(model.device, model.dtype)
        self._head = model.read_head()
        self.passes = 0
        self.reset(1, 1)

    def reset(self, rows: int, row_tokens: int) -> None:
        """Drops all rows and prefixes, and allocates the cache."""
        blocks = self._model.block_count
        self._cache = KeyValueCache(self._model, rows=rows, max_tokens=row_tokens, blocks=blocks)
        self._builder = ChunkBuilder(self._model, blocks=blocks)
        self._prefixes: list[tuple[int, ...]] = []  # prefix of each row
        self._suffix_lengths: list[int] = []  # suffix tokens of each row

    def prefill(self, texts: Sequence[PrefixedText]) -> Logits:
        """Adds texts as the last rows; new prefixes are read first in the same pass."""
        chunks = [*self._builder.prefix_chunks(texts)]
        ends: list[tuple[int, int, int]] = []  # chunk, row and index of the last token of each text
        for run in chunk_texts(texts):
            rows = slice(len(self._suffix_lengths), len(self._suffix_lengths) + len(run))
            if len(run) == 1:
                chunks += self._builder.split_text(run[0], self._cache, rows)
                ends.append((len(chunks) - 1, 0, chunks[-1].ids.shape[1] - 1))
            else:
                chunks.append(self._builder.pad_texts(run, self._cache, rows))
                ends += [
                    (len(chunks) - 1, row, len(text.suffix) - 1) for row, text in enumerate(run)
                ]
            self._prefixes += [text.prefix for text in run]
            self._suffix_lengths += [len(text.suffix) for text in run]
        hidden = self._forward(chunks)
        return self._logits(torch.stack([hidden[chunk][row, index] for chunk, row, index in ends]))

    def step(self, tokens: Sequence[int]) -> Logits:
        """Appends a token to each row, and returns the logits."""
        ids, rows = [[token] for token in tokens], slice(len(self._suffix_lengths))
        chunk = self._builder.make_chunk(
            ids, self._suffix_lengths, self._prefixes, self._cache, rows
        )
        self._suffix_lengths = [length + 1 for length in self._suffix_lengths]
        return self._logits(self._forward([chunk])[0][:, -1])

    def drop_row(self, row: int) -> None:
        """Drops a row and unused prefixes, except for the most recent prefix."""
        last = len(self._suffix_lengths) - 1
        if row != last:
            self._cache.copy_row(last, row, self._suffix_lengths[last])
        self._suffix_lengths[row], self._prefixes[row] = (
            self._suffix_lengths[last],
            self._prefixes[last],
        )
        del self._suffix_lengths[last], self._prefixes[last]
        self._builder.drop_prefixes(self._prefixes)

    def _forward(self, chunks: Sequence[TokenChunk]) -> list[Float[Tensor, "rows new hidden"]]:
        self.passes += 1
        return run_chunks(self._model, chunks, self._blocks(), self._table, self._model.device)

    def _blocks(self) -> Iterator[DecoderBlock]:
        if self._loaded_blocks is not None:
            yield from self._loaded_blocks
            return
        for number in track(range(self._model.block_count), f"a token of the {self._label}"):
            yield self._model.read_block(number)

    def _logits(self, hidden: Float[Tensor, "rows hidden"]) -> Logits:
        with torch.inference_mode():
            logits: Tensor = self._head(hidden).float()
        return logits
