"""Next-token predictions at chosen positions of a text."""

from __future__ import annotations

from jaxtyping import Float, Float32, Int64
from torch import Tensor

from camelpress.core.errors import NumericsProblem
from camelpress.inference.model.streamed_model import StreamedModel

MAX_LOGITS = 2**24  # logits in memory at once, per model


class OutputHead:
    """Computes predictions from the last hidden states.

    Args:
        label: name of the model in errors.
        model: model of the head.
    """

    def __init__(self, label: str, model: StreamedModel) -> None:
        self._label = label
        self._head = model.read_head()
        self._device = model.device
        self._vocabulary = int(model.config.vocab_size)

    def split_rows(self, rows: Int64[Tensor, " rows"]) -> tuple[Int64[Tensor, " chunk"], ...]:
        """Splits the rows into chunks of at most `MAX_LOGITS` logits, at least one row each."""
        return rows.split(max(1, MAX_LOGITS // self._vocabulary))

    def log_probabilities(
        self, hidden: Float[Tensor, "chunk hidden"]
    ) -> Float32[Tensor, "chunk vocabulary"]:
        """Returns the natural log-probabilities of the next token, on the device of the model.

        Raises:
            NumericsProblem: logits are not finite.
        """
        logits: Tensor = self._head(hidden.to(self._device)).float()
        if not bool(logits.isfinite().all()):
            raise NumericsProblem(
                f"the {self._label} gives logits that are not finite",
                next_step="inspect its weights, or compute in a wider dtype",
            )
        return logits.log_softmax(dim=-1)
