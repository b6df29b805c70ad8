"""Models on the same tokens: what each next token costs, and how far guesses differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from camelpress.core.errors import NumericsProblem
from camelpress.core.predictions import Predictions
from camelpress.core.progress import track
from camelpress.core.team import Team
from camelpress.validate.divergence import Compared, Kept, compare, compare_kept
from camelpress.validate.places import Places
from camelpress.validate.walk import Runner, walk
from camelpress.validate.workplace import Workplace

IN_CACHE = 2**18  # log-probabilities of a model that are compared in one go by a processor
Found = TypeVar("Found")
States = Sequence[Float[Tensor, "tokens hidden"]]  # of a lane, of each model


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
        told = joined(parts)._asdict()
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
    """

    def __init__(self, runners: Sequence[Runner], vocabulary: int | None) -> None:
        self._each: list[Predictions] = []
        for runner in runners:
            self._each.append(Predictions(runner.label, runner.model, self._each))
        self._vocabulary = vocabulary
        self._wrong = [0] * len(runners)

    def read(self, places: Places, hidden: States) -> Iterator[Chunk]:
        """The predictions of a lane, some at a time."""
        for rows in self._each[0].chunks(torch.arange(len(places.row))):
            logits = [
                self._looked_at(number, states[places.row[rows]])
                for number, states in enumerate(hidden)
            ]
            targets = places.target[rows].to(logits[0].device)
            step = max(1, IN_CACHE // logits[0].shape[1]) if targets.is_cpu else len(rows)
            for start in range(0, len(rows), step):
                part = slice(start, min(start + step, len(rows)))
                log_p = [each[part].log_softmax(dim=-1) for each in logits]
                first = int(rows[0])
                yield Chunk(slice(first + part.start, first + part.stop), targets[part], log_p)

    def require_finite(self, team: Team) -> list[int]:
        """See that every logit on every rank was finite; how many were not, of each model.

        Raises:
            NumericsProblem: names the first model that gave any, and says how many.
        """
        wrong = [sum(each) for each in zip(*team.exchange([self._wrong], team.size), strict=True)]
        for predictions, count in zip(self._each, wrong, strict=True):
            if count:
                raise NumericsProblem(
                    f"the {predictions.label} gives logits that are not finite in {count} "
                    "predictions",
                    next_step="inspect its weights, or compute in a wider dtype",
                )
        return wrong

    def _looked_at(
        self, number: int, hidden: Float[Tensor, "chunk hidden"]
    ) -> Float32[Tensor, "chunk vocabulary"]:
        """The logits of one model; those with one that is not finite are counted."""
        logits = self._each[number].logits(hidden)
        sums = logits.sum(dim=-1)  # not finite where a logit is not, and where they are huge
        if not bool(sums.isfinite().all()):
            self._wrong[number] += int((~logits.isfinite()).any(dim=-1).sum())
        return logits[:, : self._vocabulary]


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
    with torch.inference_mode():
        errors = walk(runners, work)
        heads = Heads(runners, vocabulary)
        held = over_lanes(runners, work, "compare", lambda n, states: hold(heads, lanes[n], states))
        wrong = heads.require_finite(work.team)
    scores = [Scores.joined(parts, places) for parts in zip(*held, strict=True)]
    return Scored(scores, errors, wrong)


def over_lanes(
    runners: Sequence[Runner], work: Workplace, label: str, look: Callable[[int, States], Found]
) -> list[Found]:
    """What is found in each lane, in order, on every rank; the ranks share the lanes out.

    Args:
        runners: that have walked.
        work: with whom.
        label: of the progress shown.
        look: is given the number of a lane, and the states that left the last blocks.
    """
    count = len(runners[0].lanes)
    with work.team.together():
        own = [
            look(lane, [runner.states(lane) for runner in runners])
            for lane in track(work.team.own(range(count)), label)
        ]
    return work.team.exchange(own, count)


def hold(heads: Heads, places: Places, hidden: States) -> list[Compared]:
    """The predictions of each model but the first in a lane, held against those of the first."""
    parts: list[list[Compared]] = [[] for _ in hidden[1:]]
    for chunk in heads.read(places, hidden):
        first, *rest = chunk.log_p
        for found, candidate in zip(parts, rest, strict=True):
            found.append(compare(first, candidate, chunk.target))
    return [joined(found) for found in parts]


def joined(parts: Sequence[Compared]) -> Compared:
    """The figures of several pieces, in order, on the CPU."""
    return Compared(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)))


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

    def look(lane: int, hidden: States) -> tuple[Compared, float, float]:
        parts, lower, upper = [], 0.0, 0.0
        for chunk in heads.read(lanes[lane], hidden):
            (log_q,) = chunk.log_p
            some = kept(starts[lane] + chunk.places.start, starts[lane] + chunk.places.stop)
            own = Kept(*(column.to(log_q.device) for column in some))
            told = compare_kept(own, log_q, chunk.target)
            parts.append(told.compared)
            lower += float(told.lower.double().sum())
            upper += float(told.upper.double().sum())
        return joined(parts), lower, upper

    with torch.inference_mode():
        errors = walk([candidate], work)
        heads = Heads([candidate], vocabulary)
        held, *sums = zip(*over_lanes([candidate], work, "compare", look), strict=True)
        wrong = heads.require_finite(work.team)
    bounds = Bounds(*(sum(each) / len(places.row) for each in sums))
    return Scored([Scores.joined(held, places)], errors, wrong), bounds
