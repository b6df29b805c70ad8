"""All windows of all texts, laid out to be run and scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Int64
from torch import Tensor

from camelpress.core.sequences import Sequences
from camelpress.validate.protocols import Window


@dataclass(frozen=True)
class Places:
    """Every prediction that counts, in the order of the windows."""

    inputs: list[list[int]]  # of each window, as far as a prediction that counts
    row: Int64[Tensor, " scored"]  # of the token that predicts, among all inputs
    target: Int64[Tensor, " scored"]  # the token that came
    position: Int64[Tensor, " scored"]  # of the token that predicts, in its window, from 0
    window: Int64[Tensor, " scored"]
    cluster: Int64[Tensor, " scored"]  # of windows whose errors go together

    @classmethod
    def all_of(cls, sequences: Sequence[Sequence[int]]) -> Places:
        """The predictions of every token after the first of its sequence, each two at least."""
        windows = [
            Window(list(ids), [place > 0 for place in range(len(ids))], number)
            for number, ids in enumerate(sequences)
        ]
        return cls.of([windows])

    @classmethod
    def of(cls, texts: Sequence[Sequence[Window]]) -> Places:
        """The predictions of the windows of each text; in every window at least one counts."""
        windows = [window for text in texts for window in text]
        clusters = _numbered(
            [(text, each.cluster) for text, some in enumerate(texts) for each in some]
        )
        counted = [torch.tensor(window.counted).nonzero().flatten() for window in windows]
        inputs = [
            window.ids[: int(places[-1])] for window, places in zip(windows, counted, strict=True)
        ]
        starts = [0, *accumulate(len(ids) for ids in inputs)]
        sizes = torch.tensor([len(places) for places in counted])
        return cls(
            inputs=inputs,
            row=torch.cat([start + each - 1 for start, each in zip(starts, counted, strict=False)]),
            target=torch.cat(
                [torch.tensor(w.ids)[places] for w, places in zip(windows, counted, strict=True)]
            ),
            position=torch.cat(counted) - 1,
            window=torch.arange(len(windows)).repeat_interleave(sizes),
            cluster=torch.tensor(clusters).repeat_interleave(sizes),
        )

    def sequences(self, *, limit: int, batch_tokens: int | None = None) -> Sequences:
        """The inputs, in batches.

        Args:
            limit: positions that the models have.
            batch_tokens: of a batch at most; None for the usual.
        """
        return Sequences(self.inputs, limit=limit, batch_tokens=batch_tokens)


def _numbered(keys: list[tuple[int, int]]) -> list[int]:
    numbers: dict[tuple[int, int], int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]
