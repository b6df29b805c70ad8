"""What a model expects next, at chosen places of a text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from camelpress.core.blocks import StreamedModel
from camelpress.core.errors import NumericsProblem

LOGITS = 2**24  # in memory at once, per model


class Predictions:
    """What makes predictions of the hidden states that leave a model's last block.

    Args:
        label: what errors call the model.
        model: whose head is read.
        beside: others; if one of them has the same head, it stands in memory once, as quantizing
            leaves heads alone.
    """

    def __init__(
        self, label: str, model: StreamedModel, beside: Sequence[Predictions] = ()
    ) -> None:
        self.label = label
        self._norm, output = model.head().children()
        own = output.get_parameter("weight")
        same = (each._weight for each in beside if torch.equal(each._weight, own))
        self._weight: Tensor = next(same, own)
        self._logits = self._weight.new_empty(0, len(self._weight))
        self.device = model.device
        self.vocabulary = int(model.config.vocab_size)

    def chunks(self, rows: Int64[Tensor, " rows"]) -> tuple[Int64[Tensor, " chunk"], ...]:
        """The rows in pieces of at most `LOGITS` logits, of one row at least."""
        return rows.split(max(1, LOGITS // self.vocabulary))

    def logits(self, hidden: Float[Tensor, "chunk hidden"]) -> Float32[Tensor, "chunk vocabulary"]:
        """Unnormalized, for the token after each state, on the model's device; finite or not.

        They stand in the same memory each time, which costs a quarter less than fresh memory.
        """
        if len(self._logits) < len(hidden):
            self._logits = self._weight.new_empty(len(hidden), len(self._weight))
        normed, logits = self._norm(hidden.to(self.device)), self._logits[: len(hidden)]
        return torch.mm(normed, self._weight.T, out=logits).to(torch.float32)

    def log_probabilities(
        self, hidden: Float[Tensor, "chunk hidden"]
    ) -> Float32[Tensor, "chunk vocabulary"]:
        """Natural logarithms for the token after each state, on the model's device.

        Raises:
            NumericsProblem: logits that are not finite.
        """
        logits = self.logits(hidden)
        if not bool(logits.isfinite().all()):
            raise NumericsProblem(
                f"the {self.label} gives logits that are not finite",
                next_step="inspect its weights, or compute in a wider dtype",
            )
        return logits.log_softmax(dim=-1)
