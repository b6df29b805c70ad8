"""Calibration tokens in lanes: which of them count, and which are seen by the 16-bit model, too."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from pathlib import Path

from jaxtyping import Bool, Float
from torch import Tensor

from camelpress.inference.model.token_batches import Batch, Sequences
from camelpress.inference.streaming import token_shards as core

LEAST_PAIRED = 16_384  # tokens, and `PAIRED` for each column of the widest layer; more cost
PAIRED = 10  # as much again as the quantized model's, and hardly change what a layer aims at
STATES = ("hidden", "reference")  # of the quantized and of the 16-bit model


class Lane(core.Lane):
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
        sequences: Sequences,
        counted: Bool[Tensor, " tokens"],
        folder: Path,
        *,
        paired: bool,
    ) -> None:
        super().__init__(number, sequences, folder, states=STATES[: 1 + paired])
        self.paired = paired
        self._counted = counted
        self._all_counted = bool(counted.all())

    def counted(
        self, batch: Batch, values: Float[Tensor, "1 batch width"]
    ) -> Float[Tensor, "counted width"]:
        """What belongs to the tokens of a batch that enter a Hessian."""
        if self._all_counted:
            return values[0]
        return values[0, self._counted[batch.tokens].to(values.device)]


def lanes(
    sequences: Sequence[Sequence[int]],
    counted: Bool[Tensor, " tokens"],
    folder: Path,
    *,
    limit: int,
    columns: int,
) -> list[Lane]:
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
    cuts = [Sequences(sequences[part], limit=limit) for part in core.cut([*map(len, sequences)])]
    marks = counted.split([len(each.tokens) for each in cuts])
    total = int(counted.sum())
    paired = max(LEAST_PAIRED, PAIRED * columns) if columns else 0
    wanted = min(len(cuts), ceil(paired * len(cuts) / total))
    chosen = {(2 * turn + 1) * len(cuts) // (2 * wanted) for turn in range(wanted)}
    places = sorted(range(len(cuts)), key=lambda place: place not in chosen)
    return [
        Lane(number, cuts[place], marks[place], folder, paired=place in chosen)
        for number, place in enumerate(places)
    ]
