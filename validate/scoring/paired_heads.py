"""Log-probabilities of several models for the same tokens, in chunks."""

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

MIN_LOGIT_ROWS = 64  # rows per product; fewer rows wait for the head's weights
CACHED_LOG_PROBS = 2**17  # log-probabilities of a model compared at once on a CPU
HiddenStates = Sequence[Float[Tensor, "tokens hidden"]]  # one tensor per model


class LogProbChunk(NamedTuple):
    """Log-probabilities of all models for some positions of a shard."""

    rows: slice  # positions of the shard
    target: Int64[Tensor, " chunk"]
    log_p: list[Float32[Tensor, "chunk vocabulary"]]  # one tensor per model


class PairedHeads:
    """Computes log-probabilities from the last hidden states of all models.

    Quantization leaves heads unchanged, so models often share one: it is in memory once, and one
    product gives the logits of all of them.

    Args:
        runners: the models, all on one device.
        vocabulary: number of ids of the distributions; None for all ids of the first model.
        threads: number of threads in parallel.
    """

    def __init__(
        self, runners: Sequence[StreamedRun], vocabulary: int | None, *, threads: int
    ) -> None:
        self._labels = [runner.label for runner in runners]
        self._norms, weights = list[torch.nn.Module](), list[Tensor]()
        self._owners = dict[int, list[int]]()  # models of each head, by the first of them
        for number, runner in enumerate(runners):
            norm, output = runner.model.read_head().children()
            self._norms.append(norm)
            weight = output.get_parameter("weight")
            first = next((n for n in self._owners if torch.equal(weights[n], weight)), number)
            weights.append(weights[first] if first < number else weight)
            self._owners.setdefault(first, []).append(number)
        self._weights = weights
        self._vocabulary = vocabulary
        self._device = runners[0].model.device
        self._rows = max(1, output_head.MAX_LOGITS // threads // len(weights[0]))
        self._buffers = threading.local()  # reused buffers of logits for each thread
        self._non_finite: list[list[int]] = [[] for _ in runners]  # counts per model and chunk

    @staticmethod
    def max_threads(vocabulary: int) -> int:
        """Returns the number of threads with memory for their logits."""
        return output_head.MAX_LOGITS // MIN_LOGIT_ROWS // vocabulary

    def log_probs(self, positions: ScoredPositions, hidden: HiddenStates) -> Iterator[LogProbChunk]:
        """Yields the log-probabilities of a shard in chunks."""
        for rows in torch.arange(len(positions.input_index)).split(self._rows):
            logits = self._logits(
                [_select(states, positions.input_index[rows]) for states in hidden]
            )
            targets = positions.target_id[rows].to(self._device)
            step = max(1, CACHED_LOG_PROBS // logits[0].shape[1]) if targets.is_cpu else len(rows)
            for start in range(0, len(rows), step):
                part = slice(start, min(start + step, len(rows)))
                log_p = [
                    self._log_p(number, model_logits[part])
                    for number, model_logits in enumerate(logits)
                ]
                first = int(rows[0])
                yield LogProbChunk(
                    slice(first + part.start, first + part.stop), targets[part], log_p
                )

    def require_finite(self, team: ProcessGroup) -> list[int]:
        """Counts predictions with non-finite logits on all ranks, and raises if there are any.

        Returns:
            the count of each model, all zero.
        Raises:
            NumericsProblem: names the first model with such logits and their count.
        """
        rank_counts = [sum(model_counts) for model_counts in self._non_finite]
        counts = [
            sum(model_counts)
            for model_counts in zip(*team.all_gather([rank_counts], team.size), strict=True)
        ]
        for label, count in zip(self._labels, counts, strict=True):
            if count:
                raise NumericsProblem(
                    f"the {label} gives logits that are not finite in {count} predictions",
                    next_step="inspect its weights, or compute in a wider dtype",
                )
        return counts

    def _logits(
        self, hidden: Sequence[Float[Tensor, "chunk _width"]]
    ) -> list[Float32[Tensor, "chunk vocabulary"]]:
        """Computes the logits of each model, finite or not."""
        logits_of: dict[int, Tensor] = {}
        for first, owners in self._owners.items():
            normed = torch.cat([self._norms[n](hidden[n].to(self._device)) for n in owners])
            weight = self._weights[first]
            buffers: dict[int, Tensor] = self._buffers.__dict__.setdefault("of", {})
            if first not in buffers or len(buffers[first]) < len(normed):
                buffers[first] = weight.new_empty(len(normed), len(weight))
            logits = torch.mm(normed, weight.T, out=buffers[first][: len(normed)])
            logits_of |= zip(owners, logits.to(torch.float32).chunk(len(owners)), strict=True)
        return [logits_of[number] for number in range(len(hidden))]

    def _log_p(
        self, number: int, logits: Float32[Tensor, "some every"]
    ) -> Float32[Tensor, "some vocabulary"]:
        """Computes the log-probabilities of one model, and counts non-finite predictions."""
        sums = logits.sum(dim=-1)  # not finite if a logit is not finite or huge
        if not bool(sums.isfinite().all()):
            self._non_finite[number].append(int((~logits.isfinite()).any(dim=-1).sum()))
        return logits[:, : self._vocabulary].log_softmax(dim=-1)


def _select(
    states: Float[Tensor, "tokens hidden"], index: Int64[Tensor, " chunk"]
) -> Float[Tensor, "chunk hidden"]:
    return states[index.to(states.device)]
