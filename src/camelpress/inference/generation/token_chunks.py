"""Chunks: texts as rectangles of tokens, and their pass through the blocks of a model.

A shared prefix is a chunk of its own and passes each block before its suffixes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from camelpress.inference.generation.prefixes import PrefixedText
from camelpress.inference.model.attention import SharedPrefix, attend_prefixed
from camelpress.inference.model.kv_cache import KeyValueCache
from camelpress.inference.model.streamed_model import DecoderBlock, StreamedModel

CHUNK_TOKENS = 1024  # tokens per forward pass through a block
FULL_ATTENTION_TOKENS = 4096  # tokens per chunk without prefix; its fused kernel stores no scores


@dataclass(frozen=True)
class TokenChunk:
    """Rows of tokens with padding, for one forward pass through a block."""

    ids: Int64[Tensor, "rows new"]
    cached_tokens: Int64[Tensor, " rows"]  # cached tokens of each row, without prefix
    max_length: int  # largest number of tokens per row, with the new ones
    prefix_tokens: Int64[Tensor, " rows"]  # prefix tokens of each row
    # rows, cache and length in tokens of each prefix
    prefixes: Sequence[tuple[Int64[Tensor, " _"], KeyValueCache, int]]
    cache: KeyValueCache | None  # None if no tokens precede or follow the chunk
    rows: slice  # rows of the cache

    @property
    def positions(self) -> Int64[Tensor, "rows new"]:
        """Positions of the tokens in their texts."""
        new = torch.arange(self.ids.shape[1], device=self.ids.device)
        return (self.prefix_tokens + self.cached_tokens)[:, None] + new

    def forward(
        self,
        number: int,
        block: DecoderBlock,
        hidden: Float[Tensor, "rows new hidden"],
        rope: tuple[Tensor, Tensor],
    ) -> Float[Tensor, "rows new hidden"]:
        """Runs one block, and returns the hidden states after it."""
        query, keys, values = block.qkv(block.attention_input(hidden), rope)
        if self.cache:
            self.cache.write(number, self.rows, self.cached_tokens, keys, values)
            keys, values = self.cache.read(number, self.rows, self.max_length)
        prefixes = [
            SharedPrefix(rows, *(tensor[0] for tensor in cache.read(number, slice(1), tokens)))
            for rows, cache, tokens in self.prefixes
        ]
        context = attend_prefixed(
            query, keys, values, self.cached_tokens, prefixes, scaling=block.scaling
        )
        return block.add_mlp(hidden + block.attention_output(context))


class ChunkBuilder:
    """Builds chunks of texts, and caches their shared prefixes.

    Args:
        model: the streamed model.
        blocks: number of blocks with keys and values in memory: all, or one if no token follows.
    """

    def __init__(self, model: StreamedModel, *, blocks: int) -> None:
        self._model = model
        self._blocks = blocks
        self._prefix_caches: dict[tuple[int, ...], KeyValueCache] = {}

    def prefix_chunks(self, texts: Iterable[PrefixedText]) -> Iterator[TokenChunk]:
        """Yields the chunks of all prefixes not cached yet."""
        for prefix in dict.fromkeys(text.prefix for text in texts):
            if prefix and prefix not in self._prefix_caches:
                self._prefix_caches[prefix] = cache = self.allocate_row(len(prefix))
                yield from self.split_text(PrefixedText((), prefix), cache, slice(1))

    def drop_prefixes(self, prefixes: Iterable[tuple[int, ...]]) -> None:
        """Drops all prefixes except these and the most recent one."""
        used = {*prefixes, next(reversed(self._prefix_caches), ())}
        self._prefix_caches = {
            prefix: cache for prefix, cache in self._prefix_caches.items() if prefix in used
        }

    def allocate_row(self, tokens: int) -> KeyValueCache:
        """Allocates a cache of one row."""
        return KeyValueCache(self._model, rows=1, max_tokens=tokens, blocks=self._blocks)

    def split_text(
        self, text: PrefixedText, cache: KeyValueCache, rows: slice
    ) -> Iterator[TokenChunk]:
        """Yields the chunks of one text."""
        step = CHUNK_TOKENS if text.prefix else FULL_ATTENTION_TOKENS
        for start in range(0, len(text.suffix), step):
            ids = text.suffix[start : start + step]
            yield self.make_chunk([ids], [start], [text.prefix], cache, rows)

    def pad_texts(
        self, texts: Sequence[PrefixedText], cache: KeyValueCache | None, rows: slice
    ) -> TokenChunk:
        """Builds one chunk of several texts, padded to equal length."""
        longest = max(len(text.suffix) for text in texts)
        ids = [[*text.suffix, *[0] * (longest - len(text.suffix))] for text in texts]
        prefixes = [text.prefix for text in texts]
        return self.make_chunk(ids, [0] * len(texts), prefixes, cache, rows)

    def make_chunk(
        self,
        ids: Sequence[Sequence[int]],
        lengths: Sequence[int],
        prefixes: Sequence[tuple[int, ...]],
        cache: KeyValueCache | None,
        rows: slice,
    ) -> TokenChunk:
        """Builds a chunk of new tokens for rows with `lengths` cached tokens."""
        rows_of_prefix: dict[tuple[int, ...], list[int]] = {}
        for row, prefix in enumerate(prefixes):
            if prefix:
                rows_of_prefix.setdefault(prefix, []).append(row)
        return TokenChunk(
            self._to_device([[*row] for row in ids]),
            self._to_device([*lengths]),
            max(lengths) + len(ids[0]),
            self._to_device([len(prefix) for prefix in prefixes]),
            [
                (self._to_device(prefix_rows), self._prefix_caches[prefix], len(prefix))
                for prefix, prefix_rows in rows_of_prefix.items()
            ],
            cache,
            rows,
        )

    def _to_device(self, numbers: Sequence[object]) -> Int64[Tensor, "..."]:
        return torch.tensor(numbers, dtype=torch.int64, device=self._model.device)


def chunk_texts(texts: Sequence[PrefixedText]) -> Iterator[list[PrefixedText]]:
    """Yields neighbouring texts in runs of at least one text.

    A run has at most `CHUNK_TOKENS` tokens with padding, unless it is a single text.
    """
    run: list[PrefixedText] = []
    for text in texts:
        longest = max(len(member.suffix) for member in (*run, text))
        if run and longest * (len(run) + 1) > CHUNK_TOKENS:
            yield run
            run = []
        run.append(text)
    yield run


def run_chunks(
    model: StreamedModel,
    chunks: Sequence[TokenChunk],
    blocks: Iterable[DecoderBlock],
    table: Float[Tensor, "vocabulary hidden"],
    state_device: torch.device,
) -> list[Float[Tensor, "rows new hidden"]]:
    """Runs all chunks through all blocks, and returns the last hidden states of each chunk.

    Args:
        model: model of the blocks.
        chunks: the chunks, each after its prefix and earlier chunks.
        blocks: all blocks in order.
        table: embedding matrix.
        state_device: device of the hidden states between blocks.
    Raises:
        CheckpointProblem: a text has ids outside the embedding.
    """
    with torch.inference_mode():
        hidden = [
            model.embed_ids(chunk.ids, table).to(state_device, model.dtype) for chunk in chunks
        ]
        for number, block in enumerate(blocks):
            for index, chunk in enumerate(chunks):
                inputs = hidden[index].to(model.device)
                rope = model.rotary(chunk.positions)
                hidden[index] = chunk.forward(number, block, inputs, rope).to(state_device)
    return hidden
