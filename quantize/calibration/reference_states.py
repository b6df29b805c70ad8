"""The 16-bit model's hidden states of a lane, beside those of the quantized model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from camelpress.inference.model.token_batches import TokenBatch, put_batch, take_batch
from camelpress.quantize.calibration_shards import CalibrationShard

STATE_DTYPE = (
    torch.float32
)  # of hidden states: what a block adds is small beside what passes through
BatchValues = Float[Tensor, "1 batch width"]


class ReferenceStates:
    """What the 16-bit model makes of a lane's tokens; nothing, if the lane is not paired.

    Args:
        lane: whose tokens they are.
        hidden: width of a state.
        device: where they are computed with.
        after: start from the states as this block has changed them already.
    """

    def __init__(
        self, lane: CalibrationShard, hidden: int, device: torch.device, *, after: bool = False
    ) -> None:
        self._lane = lane
        self._device = device
        self._states = (
            lane.read_states("reference", hidden, STATE_DTYPE, after=after)
            if lane.has_reference
            else None
        )

    def deviation(
        self,
        batch: TokenBatch,
        ours: BatchValues,
        step: Callable[[BatchValues], BatchValues],
        *,
        keep: bool = False,
    ) -> BatchValues | None:
        """What the 16-bit model has more than the quantized one, of one batch.

        Args:
            batch: of the lane.
            ours: of the quantized model.
            step: gives the same of the 16-bit model, from its states.
            keep: these are its next states.
        """
        if self._states is None:
            return None
        theirs = step(take_batch(self._states, batch, self._device))
        if keep:
            put_batch(self._states, batch, theirs)
        return theirs - ours

    def write(self) -> None:
        """Keep the states that this block has changed."""
        if self._states is not None:
            self._lane.write_states("reference", self._states, after=True)
