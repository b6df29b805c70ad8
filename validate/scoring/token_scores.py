"""Scores models on the same tokens: likelihood of each target token, and divergence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from camelpress.core.progress import track
from camelpress.inference.streaming.thread_team import ThreadTeam
from camelpress.validate.scoring.divergence import TokenMetrics, compare_log_probs
from camelpress.validate.scoring.paired_heads import HiddenStates, PairedHeads
from camelpress.validate.scoring.scored_positions import ScoredPositions
from camelpress.validate.scoring.streamed_run import StreamedRun, run_blocks
from camelpress.validate.scoring.token_formulas import TOKEN_FORMULAS
from camelpress.validate.scoring.workspace import Workspace

ShardResult = TypeVar("ShardResult")


@dataclass(frozen=True)
class TokenScores:
    """Metrics of each scored prediction."""

    reference_nll: Float32[Tensor, " scored"]  # -ln p(next token), nats
    candidate_nll: Float32[Tensor, " scored"]
    kl: Float32[Tensor, " scored"]  # KL(reference || candidate), nats
    kl_reverse: Float32[Tensor, " scored"]  # KL(candidate || reference), nats
    same_top1: Bool[Tensor, " scored"]
    top5_overlap: Float32[Tensor, " scored"]  # share of common tokens among the top 5
    confidence: Float32[Tensor, " scored"]  # reference probability of its likeliest token
    formula_values: Float32[Tensor, "scored formulas"]  # of `TOKEN_FORMULAS`; NaN if unknown
    position: Int64[Tensor, " scored"]  # position of the predicting token in its window, from 0
    sequence: Int64[Tensor, " scored"]  # number of the window
    cluster: Int64[Tensor, " scored"]  # cluster number; errors correlate within a cluster

    @classmethod
    def concat(cls, parts: Sequence[TokenMetrics], positions: ScoredPositions) -> TokenScores:
        """Concatenates the metrics of all shards in order."""
        columns = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
        metrics = TokenMetrics(*columns)._asdict()
        return cls(
            **metrics,
            position=positions.position,
            sequence=positions.window,
            cluster=positions.cluster,
        )

    def of_formula(self, key: str) -> Float32[Tensor, " scored"]:
        """Returns the numbers of a token formula; NaN if the reference had no distributions."""
        return self.formula_values[:, [*TOKEN_FORMULAS].index(key)]

    def select(self, selection: Bool[Tensor, " scored"] | Int64[Tensor, " some"]) -> TokenScores:
        """Returns the scores of some predictions, selected by a mask or by indices."""
        return replace(
            self, **{column.name: getattr(self, column.name)[selection] for column in fields(self)}
        )


class PairedScores(NamedTuple):
    """Scores of candidates against a reference."""

    scores: list[TokenScores]  # one per candidate
    block_errors: list[list[float]]  # per candidate: relative error after each block
    non_finite: list[int]  # per model: predictions with non-finite logits


def score_models(
    runners: Sequence[StreamedRun],
    positions: ScoredPositions,
    work: Workspace,
    *,
    vocabulary: int | None = None,
) -> PairedScores:
    """Runs models side by side, and compares the predictions of each with those of the first.

    Args:
        runners: the reference and the models compared with it, all on one device.
        positions: the scored positions.
        work: workspace and process group.
        vocabulary: number of ids of the distributions; None for all ids of the reference.
    Raises:
        Interruption: the user asked to stop.
        NumericsProblem: logits are not finite.
    """
    shards = positions.shards(tokens=runners[0].model.sizes.scored_shard)
    buffers = [
        [TokenMetrics.allocate(len(shard.input_index)) for _ in runners[1:]] for shard in shards
    ]

    def score(heads: PairedHeads, number: int, hidden: HiddenStates) -> list[TokenMetrics]:
        compare_shard(heads, shards[number], hidden, buffers[number])
        return buffers[number]

    with torch.inference_mode():
        errors = run_blocks(runners, work)
        metrics, non_finite = map_shards(runners, work, "compare", score, vocabulary=vocabulary)
    scores = [TokenScores.concat(parts, positions) for parts in zip(*metrics, strict=True)]
    return PairedScores(scores, errors, non_finite)


def map_shards(
    runners: Sequence[StreamedRun],
    work: Workspace,
    label: str,
    score: Callable[[PairedHeads, int, HiddenStates], ShardResult],
    *,
    vocabulary: int | None,
) -> tuple[list[ShardResult], list[int]]:
    """Applies a function to the predictions of each shard, with the shards divided among the ranks.

    Args:
        runners: the models, after their last block.
        work: workspace and process group.
        label: label of the progress bar.
        score: function of the heads, the number of a shard and the hidden states of all models
            after their last block.
        vocabulary: number of ids of the distributions; None for all ids of the first model.
    Returns:
        the results of all shards in order, and the number of non-finite predictions per model;
        equal on every rank.
    Raises:
        NumericsProblem: some predictions are not finite.
    """
    shards = range(len(runners[0].shards))
    rank_shards = work.team.items_of_rank(shards)
    model = runners[0].model
    max_threads = PairedHeads.max_threads(int(model.config.vocab_size))
    with work.team.raise_together(), ThreadTeam.start(max_threads, model.device) as threads:
        heads = PairedHeads(runners, vocabulary, threads=threads.size)
        results = threads.map(
            lambda shard: score(heads, shard, [runner.read_hidden(shard) for runner in runners]),
            rank_shards,
        )
        rank_results = [next(results) for _ in track(rank_shards, label)]
    non_finite = heads.require_finite(work.team)
    return work.team.all_gather(rank_results, len(shards)), non_finite


def compare_shard(
    heads: PairedHeads,
    positions: ScoredPositions,
    hidden: HiddenStates,
    buffers: Sequence[TokenMetrics],
) -> None:
    """Compares the predictions of each model in a shard with those of the first.

    Args:
        heads: heads of the models.
        positions: scored positions of the shard.
        hidden: hidden states after the last block of each model.
        buffers: one for each model but the first; the metrics are written to them.
    """
    for chunk in heads.log_probs(positions, hidden):
        first, *candidates = chunk.log_p
        for buffer, candidate in zip(buffers, candidates, strict=True):
            buffer.write(chunk.rows, compare_log_probs(first, candidate, chunk.target))
