"""Token sequences of any lengths, and the batches in which they pass through a block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from camelpress.core.errors import RecipeProblem

BATCH_TOKENS = 1024


@dataclass(frozen=True)
class Batch:
    """Sequences of similar length, side by side; the shorter ones are filled up on the right.

    Attention is causal, so what fills up a row cannot reach the tokens before it: it is never
    scored and never enters a Hessian.
    """

    places: Int64[Tensor, "batch longest"]
    real: Bool[Tensor, "batch longest"]
    run: slice | None  # the places, where they are one run of tokens without a filled-up row


class Sequences:
    """Token sequences of any lengths, laid end to end, and the batches that they run in.

    Args:
        sequences: the ids of each.
        limit: positions the model has.
        batch_tokens: places of a batch at most, if one sequence has no more; None for the usual.
    Raises:
        RecipeProblem: there is none, one is empty, or one is longer than the model's positions.
    """

    def __init__(
        self, sequences: Sequence[Sequence[int]], *, limit: int, batch_tokens: int | None = None
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
        self.batches = list(self._batches(batch_tokens or BATCH_TOKENS))

    def __len__(self) -> int:
        return len(self.lengths)

    def _batches(self, most: int) -> Iterator[Batch]:
        by_length = sorted(range(len(self)), key=lambda number: -self.lengths[number])
        while by_length:
            longest = self.lengths[by_length[0]]
            members = by_length[: max(1, most // longest)]
            by_length = by_length[len(members) :]
            column = torch.arange(longest)[None]
            starts = torch.tensor([self.starts[number] for number in members])[:, None]
            lengths = torch.tensor([self.lengths[number] for number in members])[:, None]
            places = starts + column.minimum(lengths - 1)
            first = int(places[0, 0])
            run = slice(first, first + places.numel())
            together = torch.equal(places.flatten(), torch.arange(run.start, run.stop))
            yield Batch(places, column < lengths, run if together else None)


def take(
    hidden: Float[Tensor, "tokens hidden"], batch: Batch, device: torch.device
) -> Float[Tensor, "batch longest hidden"]:
    """The hidden states of one batch, on the device; not to be changed."""
    if batch.run is not None:
        return hidden[batch.run].unflatten(0, batch.places.shape).to(device)
    return hidden[batch.places].to(device)


def put(
    hidden: Float[Tensor, "tokens hidden"],
    batch: Batch,
    values: Float[Tensor, "batch longest hidden"],
) -> None:
    """Store what came out for the real tokens of one batch."""
    if batch.run is not None:
        hidden[batch.run] = values.flatten(0, 1).to(hidden.device)
        return
    hidden[batch.places[batch.real]] = values[batch.real.to(values.device)].to(hidden.device)
