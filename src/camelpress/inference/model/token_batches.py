"""Token sequences of any lengths, and the batches in which they pass through a block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from camelpress.core.errors import RecipeProblem

MAX_BATCH_TOKENS = 1024


class TokenBatch(NamedTuple):
    """Neighbouring sequences end to end: nothing is filled up.

    A block does most of its work token by token; attention is told where sequences end.
    """

    tokens: slice  # among those of all sequences
    lengths: list[int]
    first_position: int  # position of each first token


class TokenBatches:
    """Token sequences of any lengths, laid end to end, and the batches that they run in.

    Args:
        sequences: the ids of each.
        limit: positions the model has.
        batch_tokens: of a batch at most, if one sequence has no more; None for the usual.
        first: position of each first token. Rotary embeddings tell differences of positions alone,
            so that another one changes nothing but how results are rounded.
    Raises:
        RecipeProblem: there is none, one is empty, or one is longer than the model's positions.
    """

    def __init__(
        self,
        sequences: Sequence[Sequence[int]],
        *,
        limit: int,
        batch_tokens: int | None = None,
        first: int = 0,
    ) -> None:
        lengths = [len(sequence) for sequence in sequences]
        if not lengths or not min(lengths):
            raise RecipeProblem(
                "there are no tokens to run" if not lengths else "one sequence has no tokens",
                next_step="give a text that is not empty",
            )
        if max(lengths) > limit:
            raise RecipeProblem(
                f"a sequence of {max(lengths)} tokens exceeds the model's {limit} positions",
                next_step=f"use a sequence length of at most {limit}",
            )
        self.lengths = lengths
        self.tokens: Int64[Tensor, " tokens"] = torch.tensor(
            [token for sequence in sequences for token in sequence], dtype=torch.int64
        )
        self.starts = [0, *accumulate(lengths[:-1])]
        self.batches = list(self._batches(batch_tokens or MAX_BATCH_TOKENS, first))

    def __len__(self) -> int:
        return len(self.lengths)

    def _batches(self, most: int, first: int) -> Iterator[TokenBatch]:
        start, held = 0, list[int]()
        for length in self.lengths:
            if held and sum(held) + length > most:
                yield TokenBatch(slice(start, start + sum(held)), held, first)
                start, held = start + sum(held), []
            held.append(length)
        yield TokenBatch(slice(start, start + sum(held)), held, first)


def take_batch(
    hidden: Float[Tensor, "tokens hidden"], batch: TokenBatch, device: torch.device
) -> Float[Tensor, "1 batch hidden"]:
    """The hidden states of one batch, on the device; not to be changed."""
    return hidden[batch.tokens][None].to(device)


def put_batch(
    hidden: Float[Tensor, "tokens hidden"],
    batch: TokenBatch,
    values: Float[Tensor, "1 batch hidden"],
) -> None:
    """Store what came out for one batch."""
    hidden[batch.tokens] = values[0].to(hidden.device)
