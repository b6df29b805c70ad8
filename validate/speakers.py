"""Models that go on with many texts at once, a token of each at a time.

One holds the whole model, and the keys and values of what it has read; the other walks through the
blocks for each token, which is slow and needs no room.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from camelpress.core.blocks import StreamedModel
from camelpress.core.progress import note
from camelpress.core.sequences import Sequences
from camelpress.validate.likelihood import Head

Logits = Float32[Tensor, "rows vocabulary"]


@runtime_checkable
class Engine(Protocol):
    """Gives logits for the next token of each row."""

    def begin(self, prompts: Sequence[Sequence[int]], most: int) -> Logits:
        """Read the prompts, which become the rows; `most` tokens will follow on each, at most."""

    def go_on(self, tokens: Sequence[int]) -> Logits:
        """Add a token to each row."""

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all other rows; these are renumbered in order."""


def shared(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with, one at least left over of each."""
    listed = [[*row] for row in rows]
    first, last = min(listed), max(listed)  # all others lie between, so they share what these do
    most = min(map(len, rows)) - 1
    return next((place for place in range(most) if first[place] != last[place]), most)


class Whole:
    """A model in memory, with the keys and values of what it has read."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model: Any = model
        self._cache = DynamicCache()
        self._mask = torch.empty(0)

    def begin(self, prompts: Sequence[Sequence[int]], most: int) -> Logits:
        """What all rows begin with is read once; the rest is filled up on the left, unattended."""
        same = shared(prompts) if len(prompts) > 1 else 0
        self._cache = DynamicCache()
        if same:
            self._mask = torch.ones(1, same, dtype=torch.int64, device=self._model.device)
            self._logits(torch.tensor([[*prompts[0][:same]]]), torch.arange(same)[None])
            self._cache.batch_repeat_interleave(len(prompts))
        rest = [prompt[same:] for prompt in prompts]
        longest = max(map(len, rest))
        ids = torch.tensor([[0] * (longest - len(row)) + [*row] for row in rest])
        real = [[1] * same + [0] * (longest - len(row)) + [1] * len(row) for row in rest]
        self._mask = torch.tensor(real, device=self._model.device)
        return self._logits(ids, (self._mask.cumsum(dim=-1) - 1).clamp(min=0)[:, same:])

    def go_on(self, tokens: Sequence[int]) -> Logits:
        """One step."""
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], dim=1)
        return self._logits(torch.tensor(tokens)[:, None], self._mask.sum(dim=-1, keepdim=True) - 1)

    def keep(self, rows: Sequence[int]) -> None:
        """Shrink the batch."""
        chosen = torch.tensor(rows, device=self._mask.device)
        self._mask = self._mask[chosen]
        self._cache.batch_select_indices(chosen)

    def _logits(
        self, ids: Int64[Tensor, "rows new"], positions: Int64[Tensor, "rows new"]
    ) -> Logits:
        with torch.inference_mode():
            logits: Tensor = self._model(
                input_ids=ids.to(self._model.device),
                attention_mask=self._mask,
                position_ids=positions.to(self._model.device),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits
        return logits[:, -1].float()


class Streamed:
    """A model that is read block by block, from the first to the last, for each token."""

    def __init__(self, model: StreamedModel, label: str) -> None:
        self._model = model
        self._label = label
        self._rows: list[list[int]] = []

    def begin(self, prompts: Sequence[Sequence[int]], most: int) -> Logits:
        """The first walk is timed, and what all may take is said."""
        self._rows = [[*prompt] for prompt in prompts]
        begun = time.monotonic()
        logits = self._logits()
        took = time.monotonic() - begun
        note(
            f"the {self._label} does not fit into memory as a whole: a token of {len(prompts)} "
            f"completions takes {took:.1f} s and more, so that {most} tokens take about "
            f"{took * most / 3600:.1f} hours"
        )
        return logits

    def go_on(self, tokens: Sequence[int]) -> Logits:
        """Walk once more with one token more in each row."""
        for row, token in zip(self._rows, tokens, strict=True):
            row.append(token)
        return self._logits()

    def keep(self, rows: Sequence[int]) -> None:
        """Leave rows out of the next walk."""
        self._rows = [self._rows[place] for place in rows]

    def _logits(self) -> Logits:
        sequences = Sequences(self._rows, limit=max(map(len, self._rows)))
        last = torch.tensor(sequences.starts) + torch.tensor(sequences.lengths) - 1
        with torch.inference_mode():
            hidden = self._model.hidden(sequences, f"a token of the {self._label}")[last]
            head = Head(self._label, self._model)
            parts = [head(rows).cpu() for rows in hidden.split(head.rows)]
        return torch.cat(parts)
