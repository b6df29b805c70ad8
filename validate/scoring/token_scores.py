"""Models on the same tokens: what each next token costs, and how far guesses differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from camelpress.core.progress import track
from camelpress.inference.streaming.thread_team import ThreadTeam
from camelpress.validate.scoring.divergence import (
    TokenMetrics,
    TopKLogProbs,
    compare_log_probs,
    compare_with_top_k,
)
from camelpress.validate.scoring.paired_heads import HiddenStates, PairedHeads
from camelpress.validate.scoring.scored_positions import ScoredPositions
from camelpress.validate.scoring.streamed_run import StreamedRun, run_blocks
from camelpress.validate.scoring.workspace import Workspace

Found = TypeVar("Found")


@dataclass(frozen=True)
class TokenScores:
    """Figures of each prediction that counts."""

    reference_nll: Float32[Tensor, " scored"]  # -ln p(next token), nats
    candidate_nll: Float32[Tensor, " scored"]
    kl: Float32[Tensor, " scored"]  # KL(reference || candidate), nats
    kl_reverse: Float32[Tensor, " scored"]  # KL(candidate || reference), nats
    same_top1: Bool[Tensor, " scored"]
    top5_overlap: Float32[
        Tensor, " scored"
    ]  # share of the reference's five likeliest in the candidate's
    confidence: Float32[Tensor, " scored"]  # probability of the reference's likeliest token
    position: Int64[Tensor, " scored"]  # of the token that predicts, in its window, from 0
    sequence: Int64[Tensor, " scored"]  # the window
    cluster: Int64[Tensor, " scored"]  # of windows whose errors go together

    @classmethod
    def concat(cls, parts: Sequence[TokenMetrics], places: ScoredPositions) -> TokenScores:
        """The figures of all lanes, in order."""
        columns = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
        told = TokenMetrics(*columns)._asdict()
        return cls(**told, position=places.position, sequence=places.window, cluster=places.cluster)

    def select(self, some: Bool[Tensor, " scored"] | Int64[Tensor, " some"]) -> TokenScores:
        """The figures of some of the predictions, by a mask or their places."""
        return replace(self, **{each.name: getattr(self, each.name)[some] for each in fields(self)})


class PairedScores(NamedTuple):
    """Candidates against a reference."""

    scores: list[TokenScores]  # of each candidate
    block_errors: list[list[float]]  # of each candidate: of hidden states, after each block
    non_finite: list[int]  # of each model: predictions with a logit that is not finite


class DivergenceBounds(NamedTuple):
    """What the mean divergence is between, nats."""

    lower: float
    upper: float


def score_models(
    runners: Sequence[StreamedRun],
    places: ScoredPositions,
    work: Workspace,
    *,
    vocabulary: int | None = None,
) -> PairedScores:
    """Run models side by side, then hold the predictions of each against those of the first.

    Args:
        runners: the reference, then whatever is compared to it; all on one device.
        places: what is scored.
        work: where it is done, and with whom.
        vocabulary: ids that the distributions are over; None for all of the reference's.
    Raises:
        Interrupted: somebody asked for the end.
        NumericsProblem: logits that are not finite.
    """
    lanes = places.shards()
    rooms = [[TokenMetrics.allocate(len(lane.input_index)) for _ in runners[1:]] for lane in lanes]

    def look(heads: PairedHeads, lane: int, hidden: HiddenStates) -> list[TokenMetrics]:
        compare_shard(heads, lanes[lane], hidden, rooms[lane])
        return rooms[lane]

    with torch.inference_mode():
        errors = run_blocks(runners, work)
        held, wrong = map_shards(runners, work, "compare", look, vocabulary=vocabulary)
    scores = [TokenScores.concat(parts, places) for parts in zip(*held, strict=True)]
    return PairedScores(scores, errors, wrong)


def map_shards(
    runners: Sequence[StreamedRun],
    work: Workspace,
    label: str,
    look: Callable[[PairedHeads, int, HiddenStates], Found],
    *,
    vocabulary: int | None,
) -> tuple[list[Found], list[int]]:
    """What is found in each lane, in order, on every rank; the ranks share the lanes out.

    Args:
        runners: that have walked.
        work: with whom.
        label: of the progress shown.
        look: is given heads, the number of a lane, and the states that left the last blocks.
        vocabulary: ids that the distributions are over; None for all of the first model's.
    Returns:
        what was found, and how many predictions of each model are not finite.
    Raises:
        NumericsProblem: some are not.
    """
    lanes = range(len(runners[0].shards))
    own = work.team.items_of_rank(lanes)
    model = runners[0].model
    most = PairedHeads.max_threads(int(model.config.vocab_size))
    with work.team.raise_together(), ThreadTeam.start(most, model.device) as crew:
        heads = PairedHeads(runners, vocabulary, threads=crew.size)
        found = crew.map(
            lambda lane: look(heads, lane, [runner.read_hidden(lane) for runner in runners]), own
        )
        told = [next(found) for _ in track(own, label)]
    wrong = heads.require_finite(work.team)
    return work.team.all_gather(told, len(lanes)), wrong


def compare_shard(
    heads: PairedHeads, places: ScoredPositions, hidden: HiddenStates, rooms: Sequence[TokenMetrics]
) -> None:
    """Hold the predictions in a lane of each model but the first against those of the first.

    Args:
        heads: of the models.
        places: of the lane.
        hidden: the states that left the last blocks.
        rooms: of each model but the first; get the figures.
    """
    for chunk in heads.log_probs(places, hidden):
        first, *rest = chunk.log_p
        for room, candidate in zip(rooms, rest, strict=True):
            room.write(chunk.places, compare_log_probs(first, candidate, chunk.target))


def score_against_store(
    kept: Callable[[int, int], TopKLogProbs],
    candidate: StreamedRun,
    places: ScoredPositions,
    work: Workspace,
    *,
    vocabulary: int,
) -> tuple[PairedScores, DivergenceBounds]:
    """Run a candidate and hold its predictions against those in a store.

    Args:
        kept: the reference's predictions from one place to another.
        candidate: on any device.
        places: what is scored.
        work: where it is done, and with whom.
        vocabulary: ids that the store's distributions are over.
    Raises:
        Interrupted: somebody asked for the end.
        NumericsProblem: logits that are not finite.
    """
    lanes = places.shards()
    starts = [0, *accumulate(len(lane.input_index) for lane in lanes)]
    rooms = [TokenMetrics.allocate(len(lane.input_index)) for lane in lanes]

    def look(
        heads: PairedHeads, lane: int, hidden: HiddenStates
    ) -> tuple[TokenMetrics, float, float]:
        held, lower, upper = rooms[lane], 0.0, 0.0
        for chunk in heads.log_probs(lanes[lane], hidden):
            (log_q,) = chunk.log_p
            some = kept(starts[lane] + chunk.places.start, starts[lane] + chunk.places.stop)
            own = TopKLogProbs(*(column.to(log_q.device) for column in some))
            told = compare_with_top_k(own, log_q, chunk.target)
            held.write(chunk.places, told.metrics)
            lower += float(told.kl_lower.double().sum())
            upper += float(told.kl_upper.double().sum())
        return held, lower, upper

    with torch.inference_mode():
        errors = run_blocks([candidate], work)
        told, wrong = map_shards([candidate], work, "compare", look, vocabulary=vocabulary)
    held, *sums = zip(*told, strict=True)
    bounds = DivergenceBounds(*(sum(each) / len(places.input_index) for each in sums))
    return PairedScores([TokenScores.concat(held, places)], errors, wrong), bounds
