"""Scored positions of all windows, in the order of their forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Int64
from torch import Tensor

from camelpress.inference.model.token_batches import TokenBatches
from camelpress.inference.streaming.token_shards import cut_shards
from camelpress.validate.corpus.duplicates import merge_duplicates
from camelpress.validate.corpus.protocols import TokenWindow


@dataclass(frozen=True)
class ScoredPositions:
    """All scored predictions, window by window, the longest windows first.

    This order puts windows of equal length side by side for attention.
    """

    inputs: list[list[int]]  # ids of each window up to its last scored prediction
    input_index: Int64[Tensor, " scored"]  # index of the predicting token among all inputs
    target_id: Int64[Tensor, " scored"]  # id of the target token
    position: Int64[Tensor, " scored"]  # position of the predicting token in its window, from 0
    window: Int64[Tensor, " scored"]
    cluster: Int64[Tensor, " scored"]  # cluster number; errors correlate within a cluster

    @classmethod
    def from_sequences(cls, sequences: Sequence[Sequence[int]]) -> ScoredPositions:
        """Returns the positions of all tokens but the first of each sequence."""
        windows = [
            TokenWindow(list(ids), [index > 0 for index in range(len(ids))], number)
            for number, ids in enumerate(sequences)
        ]
        return cls.from_windows([windows])

    @classmethod
    def from_windows(cls, texts: Sequence[Sequence[TokenWindow]]) -> ScoredPositions:
        """Returns the positions of the windows of all texts; each window must have at least one."""
        windows = [window for text in texts for window in text]
        clusters = merge_duplicates(windows, piece_numbers(texts))
        targets_of = [torch.tensor(window.score_mask).nonzero().flatten() for window in windows]
        order = sorted(range(len(windows)), key=lambda number: -int(targets_of[number][-1]))
        positions = [targets_of[number] for number in order]
        inputs = [windows[number].ids[: int(targets_of[number][-1])] for number in order]
        starts = [0, *accumulate(len(ids) for ids in inputs)]
        sizes = torch.tensor([len(window_positions) for window_positions in positions])
        targets = [torch.tensor(windows[number].ids)[targets_of[number]] for number in order]
        return cls(
            inputs=inputs,
            input_index=torch.cat(
                [
                    start + window_positions - 1
                    for start, window_positions in zip(starts, positions, strict=False)
                ]
            ),
            target_id=torch.cat(targets),
            position=torch.cat(positions) - 1,
            window=torch.tensor(order).repeat_interleave(sizes),
            cluster=torch.tensor([clusters[number] for number in order]).repeat_interleave(sizes),
        )

    def shards(self, *, tokens: int) -> list[ScoredPositions]:
        """Cuts the positions into shards.

        Args:
            tokens: shard size in tokens.
        """
        lengths = [len(ids) for ids in self.inputs]
        sizes = self.window.unique_consecutive(return_counts=True)[1].tolist()
        token_starts, scored_starts = ([0, *accumulate(counts)] for counts in (lengths, sizes))
        shards = []
        for part in cut_shards(lengths, tokens=tokens):
            span = slice(scored_starts[part.start], scored_starts[part.stop])
            shards.append(
                ScoredPositions(
                    inputs=self.inputs[part],
                    input_index=self.input_index[span] - token_starts[part.start],
                    target_id=self.target_id[span],
                    position=self.position[span],
                    window=self.window[span],
                    cluster=self.cluster[span],
                )
            )
        return shards

    def batches(
        self, *, limit: int, batch_tokens: int | None = None, first: int = 0
    ) -> TokenBatches:
        """Returns the inputs in batches.

        Args:
            limit: positions of the models.
            batch_tokens: tokens per batch at most; None for the size on a CPU.
            first: position of the first token of each window, as in `TokenBatches`.
        """
        return TokenBatches(self.inputs, limit=limit, batch_tokens=batch_tokens, first=first)


def piece_numbers(texts: Sequence[Sequence[TokenWindow]]) -> list[int]:
    """Returns for each window the number of its independent piece of text, from 0.

    Repeated pieces are not merged.
    """
    numbers: dict[tuple[int, int], int] = {}
    keys = [(text, window.cluster) for text, windows in enumerate(texts) for window in windows]
    return [numbers.setdefault(key, len(numbers)) for key in keys]
