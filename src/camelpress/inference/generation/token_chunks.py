"""Texts as rectangles of tokens, and a walk of these through the blocks of a model.

What several texts begin with alike is a piece of its own, which passes each block before them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from camelpress.inference.generation.prefixes import PrefixedText
from camelpress.inference.model.kv_cache import KeyValueCache, SharedPrefix, attend_prefixed
from camelpress.inference.model.streamed_model import DecoderBlock, StreamedModel

CHUNK_TOKENS = 1024  # tokens that pass a block at once
FULL_ATTENTION_TOKENS = (
    4096  # of a text by itself, for attention to all of it has a kernel that keeps no scores
)


@dataclass(frozen=True)
class TokenChunk:
    """Rows of tokens, those that fill up a row included, that pass through a block at once."""

    ids: Int64[Tensor, "rows new"]
    cached_tokens: Int64[Tensor, " rows"]  # tokens of their own that the rows have already
    max_length: int  # of their own, with the new ones
    prefix_tokens: Int64[Tensor, " rows"]  # tokens that they begin with besides
    prefixes: Sequence[
        tuple[Int64[Tensor, " _"], KeyValueCache, int]
    ]  # which rows, where, how many
    cache: KeyValueCache | None  # none where nothing came before and nothing will follow
    rows: slice  # of the cache

    @property
    def positions(self) -> Int64[Tensor, "rows new"]:
        """Of the tokens in their texts."""
        new = torch.arange(self.ids.shape[1], device=self.ids.device)
        return (self.prefix_tokens + self.cached_tokens)[:, None] + new

    def forward(
        self,
        number: int,
        block: DecoderBlock,
        hidden: Float[Tensor, "rows new hidden"],
        rope: tuple[Tensor, Tensor],
    ) -> Float[Tensor, "rows new hidden"]:
        """What leaves a block."""
        query, keys, values = block.qkv(block.attention_input(hidden), rope)
        if self.cache:
            self.cache.write(number, self.rows, self.cached_tokens, keys, values)
            keys, values = self.cache.read(number, self.rows, self.max_length)
        common = [
            SharedPrefix(rows, *(each[0] for each in cache.read(number, slice(1), tokens)))
            for rows, cache, tokens in self.prefixes
        ]
        context = attend_prefixed(
            query, keys, values, self.cached_tokens, common, scaling=block.scaling
        )
        return block.add_mlp(hidden + block.attention_output(context))


class ChunkBuilder:
    """Makes pieces of texts, and keeps what they begin with.

    Args:
        model: that reads them.
        blocks: whose keys and values are kept at once: all, or one where no token will follow.
    """

    def __init__(self, model: StreamedModel, *, blocks: int) -> None:
        self._model = model
        self._blocks = blocks
        self._common: dict[tuple[int, ...], KeyValueCache] = {}

    def prefix_chunks(self, texts: Iterable[PrefixedText]) -> Iterator[TokenChunk]:
        """What the texts begin with, as far as it was not read before."""
        for begin in dict.fromkeys(text.prefix for text in texts):
            if begin and begin not in self._common:
                self._common[begin] = cache = self.allocate_row(len(begin))
                yield from self.split_text(PrefixedText((), begin), cache, slice(1))

    def drop_prefixes(self, besides: Iterable[tuple[int, ...]]) -> None:
        """Forget beginnings besides these, but not the one that was read last."""
        used = {*besides, next(reversed(self._common), ())}
        self._common = {begin: kept for begin, kept in self._common.items() if begin in used}

    def allocate_row(self, tokens: int) -> KeyValueCache:
        """Room for one row."""
        return KeyValueCache(self._model, rows=1, room=tokens, blocks=self._blocks)

    def split_text(
        self, text: PrefixedText, cache: KeyValueCache, rows: slice
    ) -> Iterator[TokenChunk]:
        """One text, in as many pieces as it takes."""
        step = CHUNK_TOKENS if text.prefix else FULL_ATTENTION_TOKENS
        for begun in range(0, len(text.suffix), step):
            ids = text.suffix[begun : begun + step]
            yield self.make_chunk([ids], [begun], [text.prefix], cache, rows)

    def pad_texts(
        self, texts: Sequence[PrefixedText], cache: KeyValueCache | None, rows: slice
    ) -> TokenChunk:
        """Several texts, side by side."""
        longest = max(len(text.suffix) for text in texts)
        ids = [[*text.suffix, *[0] * (longest - len(text.suffix))] for text in texts]
        begins = [text.prefix for text in texts]
        return self.make_chunk(ids, [0] * len(texts), begins, cache, rows)

    def make_chunk(
        self,
        ids: Sequence[Sequence[int]],
        begun: Sequence[int],
        begins: Sequence[tuple[int, ...]],
        cache: KeyValueCache | None,
        rows: slice,
    ) -> TokenChunk:
        """Tokens that follow on what the rows have."""
        having: dict[tuple[int, ...], list[int]] = {}
        for row, begin in enumerate(begins):
            if begin:
                having.setdefault(begin, []).append(row)
        return TokenChunk(
            self._to_device([[*row] for row in ids]),
            self._to_device([*begun]),
            max(begun) + len(ids[0]),
            self._to_device([len(begin) for begin in begins]),
            [
                (self._to_device(some), self._common[begin], len(begin))
                for begin, some in having.items()
            ],
            cache,
            rows,
        )

    def _to_device(self, numbers: Sequence[object]) -> Int64[Tensor, "..."]:
        return torch.tensor(numbers, dtype=torch.int64, device=self._model.device)


def chunk_texts(texts: Sequence[PrefixedText]) -> Iterator[list[PrefixedText]]:
    """Neighbours in runs of at most so many tokens with what fills them up, one text at least."""
    run: list[PrefixedText] = []
    for text in texts:
        longest = max(len(each.suffix) for each in (*run, text))
        if run and longest * (len(run) + 1) > CHUNK_TOKENS:
            yield run
            run = []
        run.append(text)
    yield run


def run_chunks(
    model: StreamedModel,
    pieces: Sequence[TokenChunk],
    blocks: Iterable[DecoderBlock],
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
        hidden = [model.embed_ids(piece.ids, table).to(home, model.dtype) for piece in pieces]
        for number, block in enumerate(blocks):
            for place, piece in enumerate(pieces):
                entering = hidden[place].to(model.device)
                rope = model.rotary(piece.positions)
                hidden[place] = piece.forward(number, block, entering, rope).to(home)
    return hidden
