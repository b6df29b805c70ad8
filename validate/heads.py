"""What models expect next, side by side: log-probabilities, some at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from camelpress.core.errors import NumericsProblem
from camelpress.core.predictions import Predictions
from camelpress.core.team import Team
from camelpress.validate.places import Places
from camelpress.validate.walk import Runner

IN_CACHE = 2**17  # log-probabilities of a model that are compared in one go by a processor
States = Sequence[Float[Tensor, "tokens hidden"]]  # of a lane, of each model


class Chunk(NamedTuple):
    """What the models predict at some of the places of a lane."""

    places: slice
    target: Int64[Tensor, " chunk"]
    log_p: list[Float32[Tensor, "chunk vocabulary"]]  # of each model


class Heads:
    """What makes log-probabilities of the models' last hidden states, and counts what is no number.

    Args:
        runners: the models; all on one device.
        vocabulary: ids that the distributions are over; None for all of the first model's.
        threads: that read at once.
    """

    def __init__(self, runners: Sequence[Runner], vocabulary: int | None, *, threads: int) -> None:
        self._each: list[Predictions] = []
        for runner in runners:
            self._each.append(Predictions(runner.label, runner.model, self._each))
        self._vocabulary = vocabulary
        self._threads = threads
        self._wrong: list[list[int]] = [[] for _ in runners]  # predictions of each, piece by piece

    def read(self, places: Places, hidden: States) -> Iterator[Chunk]:
        """The predictions of a lane, some at a time."""
        for rows in self._each[0].chunks(torch.arange(len(places.row)), threads=self._threads):
            logits = [
                each.logits(states[places.row[rows]])
                for each, states in zip(self._each, hidden, strict=True)
            ]
            targets = places.target[rows].to(logits[0].device)
            step = max(1, IN_CACHE // logits[0].shape[1]) if targets.is_cpu else len(rows)
            for start in range(0, len(rows), step):
                part = slice(start, min(start + step, len(rows)))
                log_p = [self._log_p(number, each[part]) for number, each in enumerate(logits)]
                first = int(rows[0])
                yield Chunk(slice(first + part.start, first + part.stop), targets[part], log_p)

    def require_finite(self, team: Team) -> list[int]:
        """See that every logit on every rank was finite; how many were not, of each model.

        Raises:
            NumericsProblem: names the first model that gave any, and says how many.
        """
        own = [sum(each) for each in self._wrong]
        wrong = [sum(each) for each in zip(*team.exchange([own], team.size), strict=True)]
        for predictions, count in zip(self._each, wrong, strict=True):
            if count:
                raise NumericsProblem(
                    f"the {predictions.label} gives logits that are not finite in {count} "
                    "predictions",
                    next_step="inspect its weights, or compute in a wider dtype",
                )
        return wrong

    def _log_p(
        self, number: int, logits: Float32[Tensor, "some every"]
    ) -> Float32[Tensor, "some vocabulary"]:
        """Log-probabilities of one model; predictions that are not finite are counted."""
        sums = logits.sum(dim=-1)  # not finite where a logit is not, and where they are huge
        if not bool(sums.isfinite().all()):
            self._wrong[number].append(int((~logits.isfinite()).any(dim=-1).sum()))
        return logits[:, : self._vocabulary].log_softmax(dim=-1)
