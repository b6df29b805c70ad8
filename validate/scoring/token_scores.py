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
from camelpress.inference.streaming.thread_team import Crew
from camelpress.validate.scoring.divergence import Compared, Kept, compare, compare_kept
from camelpress.validate.scoring.paired_heads import Heads, States
from camelpress.validate.scoring.scored_positions import Places
from camelpress.validate.scoring.streamed_run import Runner, walk
from camelpress.validate.scoring.workspace import Workplace

Found = TypeVar("Found")


@dataclass(frozen=True)
class Scores:
    """Figures of each prediction that counts."""

    reference_nll: Float32[Tensor, " scored"]  # -ln p(next token), nats
    candidate_nll: Float32[Tensor, " scored"]
    kl: Float32[Tensor, " scored"]  # KL(reference || candidate), nats
    kl_reverse: Float32[Tensor, " scored"]  # KL(candidate || reference), nats
    same_top: Bool[Tensor, " scored"]
    top5: Float32[Tensor, " scored"]  # share of the reference's five likeliest in the candidate's
    confidence: Float32[Tensor, " scored"]  # probability of the reference's likeliest token
    position: Int64[Tensor, " scored"]  # of the token that predicts, in its window, from 0
    sequence: Int64[Tensor, " scored"]  # the window
    cluster: Int64[Tensor, " scored"]  # of windows whose errors go together

    @classmethod
    def joined(cls, parts: Sequence[Compared], places: Places) -> Scores:
        """The figures of all lanes, in order."""
        columns = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
        told = Compared(*columns)._asdict()
        return cls(**told, position=places.position, sequence=places.window, cluster=places.cluster)

    def where(self, some: Bool[Tensor, " scored"] | Int64[Tensor, " some"]) -> Scores:
        """The figures of some of the predictions, by a mask or their places."""
        return replace(self, **{each.name: getattr(self, each.name)[some] for each in fields(self)})


class Scored(NamedTuple):
    """Candidates against a reference."""

    scores: list[Scores]  # of each candidate
    errors: list[list[float]]  # of each candidate: of hidden states, after each block
    non_finite: list[int]  # of each model: predictions with a logit that is not finite


class Bounds(NamedTuple):
    """What the mean divergence is between, nats."""

    lower: float
    upper: float


def score(
    runners: Sequence[Runner], places: Places, work: Workplace, *, vocabulary: int | None = None
) -> Scored:
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
    lanes = places.lanes()
    rooms = [[Compared.room(len(lane.row)) for _ in runners[1:]] for lane in lanes]

    def look(heads: Heads, lane: int, hidden: States) -> list[Compared]:
        hold(heads, lanes[lane], hidden, rooms[lane])
        return rooms[lane]

    with torch.inference_mode():
        errors = walk(runners, work)
        held, wrong = over_lanes(runners, work, "compare", look, vocabulary=vocabulary)
    scores = [Scores.joined(parts, places) for parts in zip(*held, strict=True)]
    return Scored(scores, errors, wrong)


def over_lanes(
    runners: Sequence[Runner],
    work: Workplace,
    label: str,
    look: Callable[[Heads, int, States], Found],
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
    lanes = range(len(runners[0].lanes))
    own = work.team.own(lanes)
    model = runners[0].model
    most = Heads.most(int(model.config.vocab_size))
    with work.team.together(), Crew.gathered(most, model.device) as crew:
        heads = Heads(runners, vocabulary, threads=crew.size)
        found = crew.map(
            lambda lane: look(heads, lane, [runner.states(lane) for runner in runners]), own
        )
        told = [next(found) for _ in track(own, label)]
    wrong = heads.require_finite(work.team)
    return work.team.exchange(told, len(lanes)), wrong


def hold(heads: Heads, places: Places, hidden: States, rooms: Sequence[Compared]) -> None:
    """Hold the predictions in a lane of each model but the first against those of the first.

    Args:
        heads: of the models.
        places: of the lane.
        hidden: the states that left the last blocks.
        rooms: of each model but the first; get the figures.
    """
    for chunk in heads.read(places, hidden):
        first, *rest = chunk.log_p
        for room, candidate in zip(rooms, rest, strict=True):
            room.put(chunk.places, compare(first, candidate, chunk.target))


def score_kept(
    kept: Callable[[int, int], Kept],
    candidate: Runner,
    places: Places,
    work: Workplace,
    *,
    vocabulary: int,
) -> tuple[Scored, Bounds]:
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
    lanes = places.lanes()
    starts = [0, *accumulate(len(lane.row) for lane in lanes)]
    rooms = [Compared.room(len(lane.row)) for lane in lanes]

    def look(heads: Heads, lane: int, hidden: States) -> tuple[Compared, float, float]:
        held, lower, upper = rooms[lane], 0.0, 0.0
        for chunk in heads.read(lanes[lane], hidden):
            (log_q,) = chunk.log_p
            some = kept(starts[lane] + chunk.places.start, starts[lane] + chunk.places.stop)
            own = Kept(*(column.to(log_q.device) for column in some))
            told = compare_kept(own, log_q, chunk.target)
            held.put(chunk.places, told.compared)
            lower += float(told.lower.double().sum())
            upper += float(told.upper.double().sum())
        return held, lower, upper

    with torch.inference_mode():
        errors = walk([candidate], work)
        told, wrong = over_lanes([candidate], work, "compare", look, vocabulary=vocabulary)
    held, *sums = zip(*told, strict=True)
    bounds = Bounds(*(sum(each) / len(places.row) for each in sums))
    return Scored([Scores.joined(held, places)], errors, wrong), bounds
