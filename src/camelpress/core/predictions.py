"""What a model expects next, at chosen places of a text."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from camelpress.core.blocks import StreamedModel

LOGITS = 2**24  # in memory at once, per model
ROWS = 64  # of logits in one product at least; fewer wait for the head's weights


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
        self._own = threading.local()  # of each thread: where logits stand
        self.device = model.device
        self.vocabulary = int(model.config.vocab_size)

    @staticmethod
    def threads(vocabulary: int) -> int:
        """How many threads may predict at once."""
        return max(1, LOGITS // ROWS // vocabulary)

    def chunks(
        self, rows: Int64[Tensor, " rows"], *, threads: int
    ) -> tuple[Int64[Tensor, " chunk"], ...]:
        """The rows in pieces of one at least, with at most `LOGITS` logits in all threads."""
        return rows.split(max(1, LOGITS // threads // self.vocabulary))

    def logits(self, hidden: Float[Tensor, "chunk hidden"]) -> Float32[Tensor, "chunk vocabulary"]:
        """Unnormalized, for the token after each state, on the model's device; finite or not.

        They stand in the same memory each time, which costs a quarter less than fresh memory.
        """
        normed, place = self._norm(hidden.to(self.device)), getattr(self._own, "logits", None)
        if place is None or len(place) < len(hidden):
            place = self._own.logits = self._weight.new_empty(len(hidden), len(self._weight))
        return torch.mm(normed, self._weight.T, out=place[: len(hidden)]).to(torch.float32)
