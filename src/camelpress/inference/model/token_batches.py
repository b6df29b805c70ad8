"""Token sequences of any lengths, and their batches for a block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from camelpress.core.errors import RecipeProblem
from camelpress.inference.model.batch_sizes import batch_sizes


class TokenBatch(NamedTuple):
    """Neighbouring sequences, concatenated without padding.

    Most work of a block is per token; only attention needs the lengths.
    """

    tokens: slice  # indices among the tokens of all sequences
    lengths: list[int]
    first_position: int  # position of the first token of each sequence


class TokenBatches:
    """Concatenated token sequences of any lengths, in batches.

    Args:
        sequences: ids of each sequence.
        limit: positions of the model.
        batch_tokens: largest number of tokens per batch, unless one sequence is longer; None for
            the size on a CPU.
        first: position of the first token of each sequence. Rotary embeddings depend on differences
            of positions only, so it changes nothing but the rounding.
    Raises:
        RecipeProblem: there is no sequence, one is empty, or one exceeds the positions.
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
        self.batches = list(
            self._batches(batch_tokens or batch_sizes(torch.device("cpu")).batch, first)
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def _batches(self, max_tokens: int, first: int) -> Iterator[TokenBatch]:
        start, lengths = 0, list[int]()
        for length in self.lengths:
            if lengths and sum(lengths) + length > max_tokens:
                yield TokenBatch(slice(start, start + sum(lengths)), lengths, first)
                start, lengths = start + sum(lengths), []
            lengths.append(length)
        yield TokenBatch(slice(start, start + sum(lengths)), lengths, first)


def take_batch(
    hidden: Float[Tensor, "tokens hidden"], batch: TokenBatch, device: torch.device
) -> Float[Tensor, "1 batch hidden"]:
    """Returns the hidden states of one batch on the device; do not change them in place."""
    return hidden[batch.tokens][None].to(device)


def device_batches(
    hidden: Float[Tensor, "tokens hidden"], batches: Sequence[TokenBatch], device: torch.device
) -> Iterator[Float[Tensor, "1 batch hidden"]]:
    """Yields the hidden states of each batch on the device, like `take_batch`.

    Pinned states are copied to a GPU one batch ahead, beside the computation.
    """
    if hidden.is_pinned() and device.type == "cuda":
        yield from _copy_ahead(hidden, batches, device)
    else:
        yield from (take_batch(hidden, batch, device) for batch in batches)


def put_batch(
    hidden: Float[Tensor, "tokens hidden"],
    batch: TokenBatch,
    values: Float[Tensor, "1 batch hidden"],
) -> None:
    """Stores the results of one batch."""
    hidden[batch.tokens].copy_(values[0])


def _copy_ahead(
    hidden: Float[Tensor, "tokens hidden"], batches: Sequence[TokenBatch], device: torch.device
) -> Iterator[Float[Tensor, "1 batch hidden"]]:
    """Copies each batch on a side stream while the batch before it is computed.

    This code never ran on a GPU; its test replaces the streams.
    """
    side = torch.cuda.Stream(device)

    def start_copy(batch: TokenBatch) -> tuple[Tensor, Any]:
        with torch.cuda.stream(side):
            values = hidden[batch.tokens][None].to(device, non_blocking=True)
            return values, side.record_event()

    copies = [start_copy(batch) for batch in batches[:1]]
    for following in [*batches[1:], None]:
        values, event = copies.pop()
        if following is not None:
            copies.append(start_copy(following))
        current = torch.cuda.current_stream(device)
        current.wait_event(event)
        values.record_stream(current)
        yield values
