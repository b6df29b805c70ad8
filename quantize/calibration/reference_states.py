"""Reference states: hidden states of a shard in the 16-bit model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from camelpress.inference.model.token_batches import TokenBatch, put_batch, take_batch
from camelpress.quantize.calibration_shards import CalibrationShard

STATE_DTYPE = torch.float32  # dtype of hidden states, because a block adds little to them
BatchValues = Float[Tensor, "1 batch width"]


class ReferenceStates:
    """Hidden states of a shard in the 16-bit model, empty if the shard keeps none.

    Args:
        shard: calibration shard.
        hidden: width of a hidden state.
        device: device of the computation.
        after: true to start from the states already updated by this block.
    """

    def __init__(
        self, shard: CalibrationShard, hidden: int, device: torch.device, *, after: bool = False
    ) -> None:
        self._shard = shard
        self._device = device
        self._states = (
            shard.read_states("reference", hidden, STATE_DTYPE, after=after)
            if shard.has_reference
            else None
        )

    def deviation(
        self,
        batch: TokenBatch,
        values: BatchValues,
        step: Callable[[BatchValues], BatchValues],
        *,
        keep: bool = False,
    ) -> BatchValues | None:
        """Returns the values of the 16-bit model minus those of the quantized model.

        Args:
            batch: batch of the shard.
            values: values in the quantized model.
            step: function from hidden states to the same values in the 16-bit model.
            keep: true if the values are the next hidden states.
        """
        if self._states is None:
            return None
        reference = step(take_batch(self._states, batch, self._device))
        if keep:
            put_batch(self._states, batch, reference)
        return reference - values

    def write(self) -> None:
        """Writes the states updated by this block."""
        if self._states is not None:
            self._shard.write_states("reference", self._states, after=True)
