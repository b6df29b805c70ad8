"""What a model expects next, at chosen places of a text."""

from __future__ import annotations

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from camelpress.core.blocks import StreamedModel
from camelpress.core.errors import NumericsProblem
from camelpress.core.sequences import Sequences

LOGITS = 2**22  # in memory at once, per model


class Predictions:
    """A model that has seen all tokens: its last hidden states and what makes logits of them.

    Args:
        label: what progress and errors call the model.
        model: runs block by block as this is made.
        sequences: the tokens.
    """

    def __init__(self, label: str, model: StreamedModel, sequences: Sequences) -> None:
        self._label = label
        self._hidden = model.hidden(sequences, f"score {label}")
        self._head = model.head()
        self.device = model.device
        self.vocabulary = int(model.config.vocab_size)

    def chunks(self, rows: Int64[Tensor, " rows"]) -> tuple[Int64[Tensor, " chunk"], ...]:
        """The rows in pieces of at most `LOGITS` logits, of one row at least."""
        return rows.split(max(1, LOGITS // self.vocabulary))

    def log_probabilities(
        self, rows: Int64[Tensor, " chunk"]
    ) -> Float32[Tensor, "chunk vocabulary"]:
        """Natural logarithms for the token after each row, on the model's device.

        Args:
            rows: places among the tokens of all sequences.
        Raises:
            NumericsProblem: logits that are not finite.
        """
        logits = self._head(self._hidden[rows].to(self.device)).to(torch.float32)
        if not bool(logits.isfinite().all()):
            raise NumericsProblem(
                f"the {self._label} gives logits that are not finite",
                next_step="inspect its weights, or compute in a wider dtype",
            )
        return logits.log_softmax(dim=-1)
