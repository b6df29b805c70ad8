"""Calibration tokens in lanes: which of them count, and which are seen by the 16-bit model, too."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from pathlib import Path

from jaxtyping import Bool, Float
from torch import Tensor

from camelpress.inference.model.token_batches import TokenBatch, TokenBatches
from camelpress.inference.streaming import token_shards as core

MIN_REFERENCE_TOKENS = 16_384  # tokens, and `PAIRED` for each column of the widest layer; more cost
REFERENCE_TOKENS_PER_COLUMN = (
    10  # as much again as the quantized model's, and hardly change what a layer aims at
)
STATE_NAMES = ("hidden", "reference")  # of the quantized and of the 16-bit model


class CalibrationShard(core.TokenShard):
    """Some whole sequences of the calibration.

    Args:
        number: of the lane.
        sequences: its tokens.
        counted: which of them enter a Hessian.
        folder: for its files.
        paired: whether the 16-bit model's states of these tokens are kept beside the quantized
            one's.
    """

    def __init__(
        self,
        number: int,
        sequences: TokenBatches,
        counted: Bool[Tensor, " tokens"],
        folder: Path,
        *,
        paired: bool,
    ) -> None:
        super().__init__(number, sequences, folder, states=STATE_NAMES[: 1 + paired])
        self.has_reference = paired
        self._counted = counted
        self._all_counted = bool(counted.all())

    def select_tokens(
        self, batch: TokenBatch, values: Float[Tensor, "1 batch width"]
    ) -> Float[Tensor, "counted width"]:
        """What belongs to the tokens of a batch that enter a Hessian."""
        if self._all_counted:
            return values[0]
        return values[0, self._counted[batch.tokens].to(values.device)]


def calibration_shards(
    sequences: Sequence[Sequence[int]],
    counted: Bool[Tensor, " tokens"],
    folder: Path,
    *,
    limit: int,
    columns: int,
) -> list[CalibrationShard]:
    """Cut the sequences into lanes, the paired ones first.

    Args:
        sequences: ids.
        counted: of all tokens end to end, those that enter a Hessian.
        folder: for the lanes' files.
        limit: positions the model has.
        columns: of the widest layer: for each, about `PAIRED` counted tokens are in paired lanes,
            and `LEAST_PAIRED` in all. These lanes are spread evenly, because sequences stand
            source by source. 0: none is paired.
    """
    cuts = [
        TokenBatches(sequences[part], limit=limit)
        for part in core.cut_shards([*map(len, sequences)])
    ]
    marks = counted.split([len(each.tokens) for each in cuts])
    total = int(counted.sum())
    paired = max(MIN_REFERENCE_TOKENS, REFERENCE_TOKENS_PER_COLUMN * columns) if columns else 0
    wanted = min(len(cuts), ceil(paired * len(cuts) / total))
    chosen = {(2 * turn + 1) * len(cuts) // (2 * wanted) for turn in range(wanted)}
    places = sorted(range(len(cuts)), key=lambda place: place not in chosen)
    return [
        CalibrationShard(number, cuts[place], marks[place], folder, paired=place in chosen)
        for number, place in enumerate(places)
    ]
