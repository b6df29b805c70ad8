"""A model that goes on with many texts at once, a token of each at a time.

It has keys and values of all that it has read. Its blocks are in memory, or are read anew for each
walk where they do not fit; either way a walk takes all that is to be read through one block after
the other.
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
    """Gives logits for the next token of each row; rows come and go."""

    def reset(self, rows: int, room: int) -> None:
        """Forget everything, and make room for so many rows with so many tokens of their own."""

    def prefill(self, texts: Sequence[PrefixedText]) -> Logits:
        """Read texts, which become the last rows; logits for these."""

    def step(self, tokens: Sequence[int]) -> Logits:
        """Add a token to each row."""

    def drop_row(self, row: int) -> None:
        """Forget a row; the last one takes its place."""


class StreamedDecoder:
    """One model, as an engine.

    Args:
        model: block by block.
        label: what progress calls it.
        whole: keep its blocks in memory.
    """

    def __init__(self, model: StreamedModel, label: str, *, whole: bool) -> None:
        self._model = model
        self._label = label
        self._held: list[DecoderBlock] | None = None
        if whole:
            self._held = [
                model.read_block(number) for number in track(range(model.block_count), "load")
            ]
        self._table = model.read_embedding().to(model.device, model.dtype)
        self._head = model.read_head()
        self.passes = 0
        self.reset(1, 1)

    def reset(self, rows: int, room: int) -> None:
        """Nothing is read yet."""
        blocks = self._model.block_count
        self._cache = KeyValueCache(self._model, rows=rows, room=room, blocks=blocks)
        self._pieces = ChunkBuilder(self._model, blocks=blocks)
        self._begins: list[tuple[int, ...]] = []  # of each row
        self._own: list[int] = []  # tokens that each row has besides

    def prefill(self, texts: Sequence[PrefixedText]) -> Logits:
        """Beginnings that are new are read in the same walk, before all else."""
        read = [*self._pieces.prefix_chunks(texts)]
        ends: list[tuple[int, int, int]] = []  # piece in which a text ends, row and place in it
        for run in chunk_texts(texts):
            rows = slice(len(self._own), len(self._own) + len(run))
            if len(run) == 1:
                read += self._pieces.split_text(run[0], self._cache, rows)
                ends.append((len(read) - 1, 0, read[-1].ids.shape[1] - 1))
            else:
                read.append(self._pieces.pad_texts(run, self._cache, rows))
                ends += [(len(read) - 1, row, len(each.suffix) - 1) for row, each in enumerate(run)]
            self._begins += [text.prefix for text in run]
            self._own += [len(text.suffix) for text in run]
        hidden = self._forward(read)
        return self._logits(torch.stack([hidden[piece][row, at] for piece, row, at in ends]))

    def step(self, tokens: Sequence[int]) -> Logits:
        """One step."""
        ids, rows = [[token] for token in tokens], slice(len(self._own))
        piece = self._pieces.make_chunk(ids, self._own, self._begins, self._cache, rows)
        self._own = [own + 1 for own in self._own]
        return self._logits(self._forward([piece])[0][:, -1])

    def drop_row(self, row: int) -> None:
        """Beginnings that no row has are forgotten, but for the one that was read last."""
        last = len(self._own) - 1
        if row != last:
            self._cache.copy_row(last, row, self._own[last])
        self._own[row], self._begins[row] = self._own[last], self._begins[last]
        del self._own[last], self._begins[last]
        self._pieces.drop_prefixes(self._begins)

    def _forward(self, pieces: Sequence[TokenChunk]) -> list[Float[Tensor, "rows new hidden"]]:
        self.passes += 1
        return run_chunks(self._model, pieces, self._blocks(), self._table, self._model.device)

    def _blocks(self) -> Iterator[DecoderBlock]:
        if self._held is not None:
            yield from self._held
            return
        for number in track(range(self._model.block_count), f"a token of the {self._label}"):
            yield self._model.read_block(number)

    def _logits(self, hidden: Float[Tensor, "rows hidden"]) -> Logits:
        with torch.inference_mode():
            logits: Tensor = self._head(hidden).float()
        return logits
