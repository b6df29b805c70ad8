"""Reference states: hidden states of a shard in the 16-bit model."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from camelpress.inference.model.token_batches import TokenBatch, device_batches, put_batch
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
        self._hidden = hidden
        self._output: Float[Tensor, "tokens hidden"] | None = None
        self._batches: Iterator[BatchValues] | None = None
        if shard.has_reference:
            states = shard.read_states("reference", hidden, STATE_DTYPE, after=after)
            self._batches = device_batches(states, shard.sequences.batches, device)

    def deviation(
        self,
        batch: TokenBatch,
        values: BatchValues,
        step: Callable[[BatchValues], BatchValues],
        *,
        keep: bool = False,
    ) -> BatchValues | None:
        """Returns the values of the 16-bit model minus those of the quantized model.

        It is called once for each batch of the shard, in order.

        Args:
            batch: batch of the shard.
            values: values in the quantized model.
            step: function from hidden states to the same values in the 16-bit model.
            keep: true if the values are the next hidden states.
        """
        if self._batches is None:
            return None
        reference = step(next(self._batches))
        if keep:
            put_batch(self._allocate_output(), batch, reference)
        return reference - values

    def write(self) -> None:
        """Writes the states updated by this block."""
        if self._output is not None:
            self._shard.write_states("reference", self._output, after=True)

    def _allocate_output(self) -> Float[Tensor, "tokens hidden"]:
        if self._output is None:
            self._output = self._shard.allocate_states(
                "reference", self._hidden, STATE_DTYPE, after=True
            )
        return self._output
