"""Texts as rectangles of tokens, and a walk of these through the blocks of a model.

What several texts begin with alike is a piece of its own, which passes each block before them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from camelpress.inference.generation.prefixes import Text
from camelpress.inference.model.kv_cache import Beginning, Cache, attended
from camelpress.inference.model.streamed_model import Block, StreamedModel

PIECE = 1024  # tokens that pass a block at once
WHOLE = 4096  # of a text by itself, for attention to all of it has a kernel that keeps no scores


@dataclass(frozen=True)
class Piece:
    """Rows of tokens, those that fill up a row included, that pass through a block at once."""

    ids: Int64[Tensor, "rows new"]
    begun: Int64[Tensor, " rows"]  # tokens of their own that the rows have already
    longest: int  # of their own, with the new ones
    before: Int64[Tensor, " rows"]  # tokens that they begin with besides
    beginnings: Sequence[tuple[Int64[Tensor, " _"], Cache, int]]  # which rows, where, how many
    cache: Cache | None  # none where nothing came before and nothing will follow
    rows: slice  # of the cache

    @property
    def positions(self) -> Int64[Tensor, "rows new"]:
        """Of the tokens in their texts."""
        new = torch.arange(self.ids.shape[1], device=self.ids.device)
        return (self.before + self.begun)[:, None] + new

    def through(
        self,
        number: int,
        block: Block,
        hidden: Float[Tensor, "rows new hidden"],
        rope: tuple[Tensor, Tensor],
    ) -> Float[Tensor, "rows new hidden"]:
        """What leaves a block."""
        query, keys, values = block.heads(block.attention_input(hidden), rope)
        if self.cache:
            self.cache.write(number, self.rows, self.begun, keys, values)
            keys, values = self.cache.read(number, self.rows, self.longest)
        common = [
            Beginning(rows, *(each[0] for each in cache.read(number, slice(1), tokens)))
            for rows, cache, tokens in self.beginnings
        ]
        context = attended(query, keys, values, self.begun, common, scaling=block.scaling)
        return block.feed_forward(hidden + block.attention_output(context))


class Pieces:
    """Makes pieces of texts, and keeps what they begin with.

    Args:
        model: that reads them.
        blocks: whose keys and values are kept at once: all, or one where no token will follow.
    """

    def __init__(self, model: StreamedModel, *, blocks: int) -> None:
        self._model = model
        self._blocks = blocks
        self._common: dict[tuple[int, ...], Cache] = {}

    def beginnings(self, texts: Iterable[Text]) -> Iterator[Piece]:
        """What the texts begin with, as far as it was not read before."""
        for begin in dict.fromkeys(text.beginning for text in texts):
            if begin and begin not in self._common:
                self._common[begin] = cache = self.room(len(begin))
                yield from self.alone(Text((), begin), cache, slice(1))

    def forget(self, besides: Iterable[tuple[int, ...]]) -> None:
        """Forget beginnings besides these, but not the one that was read last."""
        used = {*besides, next(reversed(self._common), ())}
        self._common = {begin: kept for begin, kept in self._common.items() if begin in used}

    def room(self, tokens: int) -> Cache:
        """Room for one row."""
        return Cache(self._model, rows=1, room=tokens, blocks=self._blocks)

    def alone(self, text: Text, cache: Cache, rows: slice) -> Iterator[Piece]:
        """One text, in as many pieces as it takes."""
        step = PIECE if text.beginning else WHOLE
        for begun in range(0, len(text.rest), step):
            ids = text.rest[begun : begun + step]
            yield self.piece([ids], [begun], [text.beginning], cache, rows)

    def together(self, texts: Sequence[Text], cache: Cache | None, rows: slice) -> Piece:
        """Several texts, side by side."""
        longest = max(len(text.rest) for text in texts)
        ids = [[*text.rest, *[0] * (longest - len(text.rest))] for text in texts]
        begins = [text.beginning for text in texts]
        return self.piece(ids, [0] * len(texts), begins, cache, rows)

    def piece(
        self,
        ids: Sequence[Sequence[int]],
        begun: Sequence[int],
        begins: Sequence[tuple[int, ...]],
        cache: Cache | None,
        rows: slice,
    ) -> Piece:
        """Tokens that follow on what the rows have."""
        having: dict[tuple[int, ...], list[int]] = {}
        for row, begin in enumerate(begins):
            if begin:
                having.setdefault(begin, []).append(row)
        return Piece(
            self._placed([[*row] for row in ids]),
            self._placed([*begun]),
            max(begun) + len(ids[0]),
            self._placed([len(begin) for begin in begins]),
            [
                (self._placed(some), self._common[begin], len(begin))
                for begin, some in having.items()
            ],
            cache,
            rows,
        )

    def _placed(self, numbers: Sequence[object]) -> Int64[Tensor, "..."]:
        return torch.tensor(numbers, dtype=torch.int64, device=self._model.device)


def runs(texts: Sequence[Text]) -> Iterator[list[Text]]:
    """Neighbours in runs of at most so many tokens with what fills them up, one text at least."""
    run: list[Text] = []
    for text in texts:
        longest = max(len(each.rest) for each in (*run, text))
        if run and longest * (len(run) + 1) > PIECE:
            yield run
            run = []
        run.append(text)
    yield run


def walk(
    model: StreamedModel,
    pieces: Sequence[Piece],
    blocks: Iterable[Block],
    table: Float[Tensor, "vocabulary hidden"],
    home: torch.device,
) -> list[Float[Tensor, "rows new hidden"]]:
    """What leaves the last block, of each piece.

    Args:
        model: whose blocks they are.
        pieces: each after those that it builds upon.
        blocks: all, in their order.
        table: of embeddings, where the pieces are.
        home: where hidden states are between blocks.
    Raises:
        CheckpointProblem: a text has ids that the model does not know.
    """
    with torch.inference_mode():
        hidden = [model.looked_up(piece.ids, table).to(home, model.dtype) for piece in pieces]
        for number, block in enumerate(blocks):
            for place, piece in enumerate(pieces):
                entering = hidden[place].to(model.device)
                rope = model.turned(piece.positions)
                hidden[place] = piece.through(number, block, entering, rope).to(home)
    return hidden
