"""What a model expects next, at chosen places of a text."""

from __future__ import annotations

from jaxtyping import Float, Float32, Int64
from torch import Tensor

from camelpress.core.errors import NumericsProblem
from camelpress.inference.model.streamed_model import StreamedModel

MAX_LOGITS = 2**24  # in memory at once, per model


class OutputHead:
    """What makes predictions of the hidden states that leave a model's last block.

    Args:
        label: what errors call the model.
        model: whose head is read.
    """

    def __init__(self, label: str, model: StreamedModel) -> None:
        self._label = label
        self._head = model.read_head()
        self._device = model.device
        self._vocabulary = int(model.config.vocab_size)

    def split_rows(self, rows: Int64[Tensor, " rows"]) -> tuple[Int64[Tensor, " chunk"], ...]:
        """The rows in pieces of at most `LOGITS` logits, of one row at least."""
        return rows.split(max(1, MAX_LOGITS // self._vocabulary))

    def log_probabilities(
        self, hidden: Float[Tensor, "chunk hidden"]
    ) -> Float32[Tensor, "chunk vocabulary"]:
        """Natural logarithms for the token after each state, on the model's device.

        Raises:
            NumericsProblem: logits that are not finite.
        """
        logits: Tensor = self._head(hidden.to(self._device)).float()
        if not bool(logits.isfinite().all()):
            raise NumericsProblem(
                f"the {self._label} gives logits that are not finite",
                next_step="inspect its weights, or compute in a wider dtype",
            )
        return logits.log_softmax(dim=-1)
