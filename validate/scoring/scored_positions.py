"""All windows of all texts, laid out to be run and scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Int64
from torch import Tensor

from camelpress.inference.model.token_batches import BATCH_TOKENS, Sequences
from camelpress.inference.streaming.token_shards import cut
from camelpress.validate.corpus.duplicates import joined
from camelpress.validate.corpus.protocols import Window


@dataclass(frozen=True)
class Places:
    """Every prediction that counts, window by window, those of long windows first.

    So windows of one length, which attention takes together, are neighbours.
    """

    inputs: list[list[int]]  # of each window, as far as a prediction that counts
    row: Int64[Tensor, " scored"]  # of the token that predicts, among all inputs
    target: Int64[Tensor, " scored"]  # the token that came
    position: Int64[Tensor, " scored"]  # of the token that predicts, in its window, from 0
    window: Int64[Tensor, " scored"]
    cluster: Int64[Tensor, " scored"]  # of windows whose errors go together, copies among them

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
        clusters = joined(windows, pieces(texts))
        seen = [torch.tensor(window.counted).nonzero().flatten() for window in windows]
        order = sorted(range(len(windows)), key=lambda number: -int(seen[number][-1]))
        counted = [seen[number] for number in order]
        inputs = [windows[number].ids[: int(seen[number][-1])] for number in order]
        starts = [0, *accumulate(len(ids) for ids in inputs)]
        sizes = torch.tensor([len(places) for places in counted])
        targets = [torch.tensor(windows[number].ids)[seen[number]] for number in order]
        return cls(
            inputs=inputs,
            row=torch.cat([start + each - 1 for start, each in zip(starts, counted, strict=False)]),
            target=torch.cat(targets),
            position=torch.cat(counted) - 1,
            window=torch.tensor(order).repeat_interleave(sizes),
            cluster=torch.tensor([clusters[number] for number in order]).repeat_interleave(sizes),
        )

    def lanes(self, *, tokens: int = BATCH_TOKENS // 2) -> list[Places]:
        """The same in lanes; in small ones, of a batch each, for every thread has one in memory.

        Args:
            tokens: that are enough for a lane, if `LANE_TOKENS` are more.
        """
        lengths = [len(ids) for ids in self.inputs]
        sizes = self.window.unique_consecutive(return_counts=True)[1].tolist()
        begun, scored = ([0, *accumulate(each)] for each in (lengths, sizes))
        found = []
        for part in cut(lengths, tokens=tokens):
            here = slice(scored[part.start], scored[part.stop])
            found.append(
                Places(
                    inputs=self.inputs[part],
                    row=self.row[here] - begun[part.start],
                    target=self.target[here],
                    position=self.position[here],
                    window=self.window[here],
                    cluster=self.cluster[here],
                )
            )
        return found

    def sequences(
        self, *, limit: int, batch_tokens: int | None = None, first: int = 0
    ) -> Sequences:
        """The inputs, in batches.

        Args:
            limit: positions that the models have.
            batch_tokens: of a batch at most; None for the usual.
            first: position of each first token, as `Sequences` has it.
        """
        return Sequences(self.inputs, limit=limit, batch_tokens=batch_tokens, first=first)


def pieces(texts: Sequence[Sequence[Window]]) -> list[int]:
    """The number of the independent piece of text that each window is of, from 0.

    Pieces that repeat another one are not joined.
    """
    numbers: dict[tuple[int, int], int] = {}
    keys = [(text, window.cluster) for text, some in enumerate(texts) for window in some]
    return [numbers.setdefault(key, len(numbers)) for key in keys]
