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
from camelpress.inference.generation.prefixes import Text
from camelpress.inference.generation.token_chunks import Piece, Pieces, runs, walk
from camelpress.inference.model.kv_cache import Cache
from camelpress.inference.model.streamed_model import Block, StreamedModel

Logits = Float32[Tensor, "rows vocabulary"]


@runtime_checkable
class Engine(Protocol):
    """Gives logits for the next token of each row; rows come and go."""

    def open(self, rows: int, room: int) -> None:
        """Forget everything, and make room for so many rows with so many tokens of their own."""

    def add(self, texts: Sequence[Text]) -> Logits:
        """Read texts, which become the last rows; logits for these."""

    def go_on(self, tokens: Sequence[int]) -> Logits:
        """Add a token to each row."""

    def drop(self, row: int) -> None:
        """Forget a row; the last one takes its place."""


class Speaker:
    """One model, as an engine.

    Args:
        model: block by block.
        label: what progress calls it.
        whole: keep its blocks in memory.
    """

    def __init__(self, model: StreamedModel, label: str, *, whole: bool) -> None:
        self._model = model
        self._label = label
        self._held: list[Block] | None = None
        if whole:
            self._held = [model.block(number) for number in track(range(model.blocks), "load")]
        self._table = model.embedding().to(model.device, model.dtype)
        self._head = model.head()
        self.walks = 0
        self.open(1, 1)

    def open(self, rows: int, room: int) -> None:
        """Nothing is read yet."""
        blocks = self._model.blocks
        self._cache = Cache(self._model, rows=rows, room=room, blocks=blocks)
        self._pieces = Pieces(self._model, blocks=blocks)
        self._begins: list[tuple[int, ...]] = []  # of each row
        self._own: list[int] = []  # tokens that each row has besides

    def add(self, texts: Sequence[Text]) -> Logits:
        """Beginnings that are new are read in the same walk, before all else."""
        read = [*self._pieces.beginnings(texts)]
        ends: list[tuple[int, int, int]] = []  # piece in which a text ends, row and place in it
        for run in runs(texts):
            rows = slice(len(self._own), len(self._own) + len(run))
            if len(run) == 1:
                read += self._pieces.alone(run[0], self._cache, rows)
                ends.append((len(read) - 1, 0, read[-1].ids.shape[1] - 1))
            else:
                read.append(self._pieces.together(run, self._cache, rows))
                ends += [(len(read) - 1, row, len(each.rest) - 1) for row, each in enumerate(run)]
            self._begins += [text.beginning for text in run]
            self._own += [len(text.rest) for text in run]
        hidden = self._walk(read)
        return self._logits(torch.stack([hidden[piece][row, at] for piece, row, at in ends]))

    def go_on(self, tokens: Sequence[int]) -> Logits:
        """One step."""
        ids, rows = [[token] for token in tokens], slice(len(self._own))
        piece = self._pieces.piece(ids, self._own, self._begins, self._cache, rows)
        self._own = [own + 1 for own in self._own]
        return self._logits(self._walk([piece])[0][:, -1])

    def drop(self, row: int) -> None:
        """Beginnings that no row has are forgotten, but for the one that was read last."""
        last = len(self._own) - 1
        if row != last:
            self._cache.move(last, row, self._own[last])
        self._own[row], self._begins[row] = self._own[last], self._begins[last]
        del self._own[last], self._begins[last]
        self._pieces.forget(self._begins)

    def _walk(self, pieces: Sequence[Piece]) -> list[Float[Tensor, "rows new hidden"]]:
        self.walks += 1
        return walk(self._model, pieces, self._blocks(), self._table, self._model.device)

    def _blocks(self) -> Iterator[Block]:
        if self._held is not None:
            yield from self._held
            return
        for number in track(range(self._model.blocks), f"a token of the {self._label}"):
            yield self._model.block(number)

    def _logits(self, hidden: Float[Tensor, "rows hidden"]) -> Logits:
        with torch.inference_mode():
            logits: Tensor = self._head(hidden).float()
        return logits
