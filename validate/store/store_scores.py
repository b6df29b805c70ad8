"""Scores a candidate against the predictions in a store."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import NamedTuple

import torch

from camelpress.validate.scoring.divergence import TokenMetrics
from camelpress.validate.scoring.paired_heads import HiddenStates, PairedHeads
from camelpress.validate.scoring.scored_positions import ScoredPositions
from camelpress.validate.scoring.streamed_run import StreamedRun, run_blocks
from camelpress.validate.scoring.token_scores import PairedScores, TokenScores, map_shards
from camelpress.validate.scoring.workspace import Workspace
from camelpress.validate.store.top_k_log_probs import TopKLogProbs, compare_with_top_k


class DivergenceBounds(NamedTuple):
    """Bounds of the mean divergence, nats per token."""

    lower: float
    upper: float


def score_against_store(
    read_top_k: Callable[[int, int], TopKLogProbs],
    candidate: StreamedRun,
    positions: ScoredPositions,
    work: Workspace,
    *,
    vocabulary: int,
) -> tuple[PairedScores, DivergenceBounds]:
    """Runs a candidate, and compares its predictions with those in a store.

    Args:
        read_top_k: returns the stored predictions between two positions.
        candidate: run of the candidate, on any device.
        positions: the scored positions.
        work: workspace and process group.
        vocabulary: number of ids of the stored distributions.
    Raises:
        Interruption: the user asked to stop.
        NumericsProblem: logits are not finite.
    """
    shards = positions.shards(tokens=candidate.model.sizes.scored_shard)
    starts = [0, *accumulate(len(shard.input_index) for shard in shards)]
    buffers = [TokenMetrics.allocate(len(shard.input_index)) for shard in shards]

    def score(
        heads: PairedHeads, number: int, hidden: HiddenStates
    ) -> tuple[TokenMetrics, float, float]:
        metrics, lower, upper = buffers[number], 0.0, 0.0
        for chunk in heads.log_probs(shards[number], hidden):
            (log_q,) = chunk.log_p
            stored = read_top_k(starts[number] + chunk.rows.start, starts[number] + chunk.rows.stop)
            top_k = TopKLogProbs(*(column.to(log_q.device) for column in stored))
            results = compare_with_top_k(top_k, log_q, chunk.target)
            metrics.write(chunk.rows, results.metrics)
            lower += float(results.kl_lower.double().sum())
            upper += float(results.kl_upper.double().sum())
        return metrics, lower, upper

    with torch.inference_mode():
        errors = run_blocks([candidate], work)
        results, non_finite = map_shards([candidate], work, "compare", score, vocabulary=vocabulary)
    metrics, *sums = zip(*results, strict=True)
    bounds = DivergenceBounds(
        *(sum(shard_sums) / len(positions.input_index) for shard_sums in sums)
    )
    return PairedScores([TokenScores.concat(metrics, positions)], errors, non_finite), bounds
