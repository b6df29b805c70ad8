"""What a model expects next, at chosen places of a text."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from camelpress.core.blocks import StreamedModel
from camelpress.core.errors import NumericsProblem

LOGITS = 2**22  # in memory at once, per model


def pieces(rows: Int64[Tensor, " rows"], vocabulary: int) -> tuple[Int64[Tensor, " chunk"], ...]:
    """The rows in pieces of at most `LOGITS` logits, of one row at least."""
    return rows.split(max(1, LOGITS // vocabulary))


class Predictions:
    """A model that has seen all tokens: its last hidden states and what makes logits of them.

    Args:
        label: what errors call the model.
        model: whose head is read.
        hidden: what left its last block, for all tokens.
    """

    def __init__(
        self, label: str, model: StreamedModel, hidden: Float[Tensor, "tokens hidden"]
    ) -> None:
        self.label = label
        self._hidden = hidden
        self._head = model.head()
        self.device = model.device
        self.vocabulary = int(model.config.vocab_size)

    def chunks(self, rows: Int64[Tensor, " rows"]) -> tuple[Int64[Tensor, " chunk"], ...]:
        """The rows in pieces of at most `LOGITS` logits, of one row at least."""
        return pieces(rows, self.vocabulary)

    def logits(self, rows: Int64[Tensor, " chunk"]) -> Float32[Tensor, "chunk vocabulary"]:
        """Unnormalized, for the token after each row, on the model's device; finite or not.

        Args:
            rows: places among the tokens of all sequences.
        """
        logits: Tensor = self._head(self._hidden[rows].to(self.device)).to(torch.float32)
        return logits

    def log_probabilities(
        self, rows: Int64[Tensor, " chunk"]
    ) -> Float32[Tensor, "chunk vocabulary"]:
        """Natural logarithms for the token after each row, on the model's device.

        Args:
            rows: places among the tokens of all sequences.
        Raises:
            NumericsProblem: logits that are not finite.
        """
        logits = self.logits(rows)
        if not bool(logits.isfinite().all()):
            raise NumericsProblem(
                f"the {self.label} gives logits that are not finite",
                next_step="inspect its weights, or compute in a wider dtype",
            )
        return logits.log_softmax(dim=-1)
