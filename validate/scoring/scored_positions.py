"""All windows of all texts, laid out to be run and scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Int64
from torch import Tensor

from camelpress.inference.model.token_batches import MAX_BATCH_TOKENS, TokenBatches
from camelpress.inference.streaming.token_shards import cut_shards
from camelpress.validate.corpus.duplicates import merge_duplicates
from camelpress.validate.corpus.protocols import TokenWindow


@dataclass(frozen=True)
class ScoredPositions:
    """Every prediction that counts, window by window, those of long windows first.

    So windows of one length, which attention takes together, are neighbours.
    """

    inputs: list[list[int]]  # of each window, as far as a prediction that counts
    input_index: Int64[Tensor, " scored"]  # of the token that predicts, among all inputs
    target_id: Int64[Tensor, " scored"]  # the token that came
    position: Int64[Tensor, " scored"]  # of the token that predicts, in its window, from 0
    window: Int64[Tensor, " scored"]
    cluster: Int64[Tensor, " scored"]  # of windows whose errors go together, copies among them

    @classmethod
    def from_sequences(cls, sequences: Sequence[Sequence[int]]) -> ScoredPositions:
        """The predictions of every token after the first of its sequence, each two at least."""
        windows = [
            TokenWindow(list(ids), [place > 0 for place in range(len(ids))], number)
            for number, ids in enumerate(sequences)
        ]
        return cls.from_windows([windows])

    @classmethod
    def from_windows(cls, texts: Sequence[Sequence[TokenWindow]]) -> ScoredPositions:
        """The predictions of the windows of each text; in every window at least one counts."""
        windows = [window for text in texts for window in text]
        clusters = merge_duplicates(windows, piece_numbers(texts))
        seen = [torch.tensor(window.score_mask).nonzero().flatten() for window in windows]
        order = sorted(range(len(windows)), key=lambda number: -int(seen[number][-1]))
        counted = [seen[number] for number in order]
        inputs = [windows[number].ids[: int(seen[number][-1])] for number in order]
        starts = [0, *accumulate(len(ids) for ids in inputs)]
        sizes = torch.tensor([len(places) for places in counted])
        targets = [torch.tensor(windows[number].ids)[seen[number]] for number in order]
        return cls(
            inputs=inputs,
            input_index=torch.cat(
                [start + each - 1 for start, each in zip(starts, counted, strict=False)]
            ),
            target_id=torch.cat(targets),
            position=torch.cat(counted) - 1,
            window=torch.tensor(order).repeat_interleave(sizes),
            cluster=torch.tensor([clusters[number] for number in order]).repeat_interleave(sizes),
        )

    def shards(self, *, tokens: int = MAX_BATCH_TOKENS // 2) -> list[ScoredPositions]:
        """The same in lanes; in small ones, of a batch each, for every thread has one in memory.

        Args:
            tokens: that are enough for a lane, if `LANE_TOKENS` are more.
        """
        lengths = [len(ids) for ids in self.inputs]
        sizes = self.window.unique_consecutive(return_counts=True)[1].tolist()
        begun, scored = ([0, *accumulate(each)] for each in (lengths, sizes))
        found = []
        for part in cut_shards(lengths, tokens=tokens):
            here = slice(scored[part.start], scored[part.stop])
            found.append(
                ScoredPositions(
                    inputs=self.inputs[part],
                    input_index=self.input_index[here] - begun[part.start],
                    target_id=self.target_id[here],
                    position=self.position[here],
                    window=self.window[here],
                    cluster=self.cluster[here],
                )
            )
        return found

    def batches(
        self, *, limit: int, batch_tokens: int | None = None, first: int = 0
    ) -> TokenBatches:
        """The inputs, in batches.

        Args:
            limit: positions that the models have.
            batch_tokens: of a batch at most; None for the usual.
            first: position of each first token, as `Sequences` has it.
        """
        return TokenBatches(self.inputs, limit=limit, batch_tokens=batch_tokens, first=first)


def piece_numbers(texts: Sequence[Sequence[TokenWindow]]) -> list[int]:
    """The number of the independent piece of text that each window is of, from 0.

    Pieces that repeat another one are not joined.
    """
    numbers: dict[tuple[int, int], int] = {}
    keys = [(text, window.cluster) for text, some in enumerate(texts) for window in some]
    return [numbers.setdefault(key, len(numbers)) for key in keys]
