"""What models expect next, side by side: log-probabilities, some at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from camelpress.core.errors import NumericsProblem
from camelpress.inference.model import output_head
from camelpress.inference.streaming.process_group import ProcessGroup
from camelpress.validate.scoring.scored_positions import ScoredPositions
from camelpress.validate.scoring.streamed_run import StreamedRun

MIN_LOGIT_ROWS = 64  # of logits in one product at least; fewer wait for the head's weights
CACHED_LOG_PROBS = 2**17  # log-probabilities of a model that are compared in one go by a processor
HiddenStates = Sequence[Float[Tensor, "tokens hidden"]]  # of a lane, of each model


class LogProbChunk(NamedTuple):
    """What the models predict at some of the places of a lane."""

    places: slice
    target: Int64[Tensor, " chunk"]
    log_p: list[Float32[Tensor, "chunk vocabulary"]]  # of each model


class PairedHeads:
    """What makes log-probabilities of the models' last hidden states, and counts what is no number.

    A head that several models have, as quantizing leaves heads alone, stands in memory once, and
    makes their logits in one product.

    Args:
        runners: the models; all on one device.
        vocabulary: ids that the distributions are over; None for all of the first model's.
        threads: that read at once.
    """

    def __init__(
        self, runners: Sequence[StreamedRun], vocabulary: int | None, *, threads: int
    ) -> None:
        self._labels = [runner.label for runner in runners]
        self._norms, weights = list[torch.nn.Module](), list[Tensor]()
        self._owners = dict[int, list[int]]()  # of each head, by the first model that has it
        for number, runner in enumerate(runners):
            norm, output = runner.model.read_head().children()
            self._norms.append(norm)
            own = output.get_parameter("weight")
            first = next((n for n in self._owners if torch.equal(weights[n], own)), number)
            weights.append(weights[first] if first < number else own)
            self._owners.setdefault(first, []).append(number)
        self._weights = weights
        self._vocabulary = vocabulary
        self._device = runners[0].model.device
        self._rows = max(1, output_head.MAX_LOGITS // threads // len(weights[0]))
        self._room = threading.local()  # for logits: the same each time, which is faster
        self._wrong: list[list[int]] = [[] for _ in runners]  # predictions of each, piece by piece

    @staticmethod
    def max_threads(vocabulary: int) -> int:
        """How many threads may read at once."""
        return output_head.MAX_LOGITS // MIN_LOGIT_ROWS // vocabulary

    def log_probs(self, places: ScoredPositions, hidden: HiddenStates) -> Iterator[LogProbChunk]:
        """The predictions of a lane, some at a time."""
        for rows in torch.arange(len(places.input_index)).split(self._rows):
            logits = self._logits([states[places.input_index[rows]] for states in hidden])
            targets = places.target_id[rows].to(self._device)
            step = max(1, CACHED_LOG_PROBS // logits[0].shape[1]) if targets.is_cpu else len(rows)
            for start in range(0, len(rows), step):
                part = slice(start, min(start + step, len(rows)))
                log_p = [self._log_p(number, each[part]) for number, each in enumerate(logits)]
                first = int(rows[0])
                yield LogProbChunk(
                    slice(first + part.start, first + part.stop), targets[part], log_p
                )

    def require_finite(self, team: ProcessGroup) -> list[int]:
        """See that every logit on every rank was finite; how many were not, of each model.

        Raises:
            NumericsProblem: names the first model that gave any, and says how many.
        """
        own = [sum(each) for each in self._wrong]
        wrong = [sum(each) for each in zip(*team.all_gather([own], team.size), strict=True)]
        for label, count in zip(self._labels, wrong, strict=True):
            if count:
                raise NumericsProblem(
                    f"the {label} gives logits that are not finite in {count} predictions",
                    next_step="inspect its weights, or compute in a wider dtype",
                )
        return wrong

    def _logits(
        self, hidden: Sequence[Float[Tensor, "chunk _width"]]
    ) -> list[Float32[Tensor, "chunk vocabulary"]]:
        """Unnormalized, of each model, finite or not."""
        found: dict[int, Tensor] = {}
        for first, owners in self._owners.items():
            normed = torch.cat([self._norms[n](hidden[n].to(self._device)) for n in owners])
            weight = self._weights[first]
            room: dict[int, Tensor] = self._room.__dict__.setdefault("of", {})
            if first not in room or len(room[first]) < len(normed):
                room[first] = weight.new_empty(len(normed), len(weight))
            logits = torch.mm(normed, weight.T, out=room[first][: len(normed)])
            found |= zip(owners, logits.to(torch.float32).chunk(len(owners)), strict=True)
        return [found[number] for number in range(len(hidden))]

    def _log_p(
        self, number: int, logits: Float32[Tensor, "some every"]
    ) -> Float32[Tensor, "some vocabulary"]:
        """Log-probabilities of one model; predictions that are not finite are counted."""
        sums = logits.sum(dim=-1)  # not finite where a logit is not, and where they are huge
        if not bool(sums.isfinite().all()):
            self._wrong[number].append(int((~logits.isfinite()).any(dim=-1).sum()))
        return logits[:, : self._vocabulary].log_softmax(dim=-1)
