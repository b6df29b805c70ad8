"""Models on the same tokens, block by block: what each next token costs, how far guesses differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from camelpress.core.blocks import StreamedModel
from camelpress.core.errors import NumericsProblem
from camelpress.core.predictions import Predictions, pieces
from camelpress.core.progress import track
from camelpress.core.sequences import Sequences
from camelpress.validate.divergence import Compared, Kept, compare, compare_kept
from camelpress.validate.places import Places

ROWS = 4096  # hidden states that are compared in one go


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
        """The figures of all chunks, in order."""
        columns = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
        told = dict(zip(Compared._fields, columns, strict=True))
        return cls(**told, position=places.position, sequence=places.window, cluster=places.cluster)

    def where(self, mask: Bool[Tensor, " scored"]) -> Scores:
        """The figures of some of the predictions."""
        return replace(self, **{each.name: getattr(self, each.name)[mask] for each in fields(self)})


class Runner(NamedTuple):
    """A model and the batches in which it sees the tokens."""

    label: str
    model: StreamedModel
    sequences: Sequences


class Walked(NamedTuple):
    """What came out of the last blocks, and how far apart hidden states were after each."""

    predictions: list[Predictions]
    errors: list[list[float]]  # of each runner but the first; relative to the first


class Scored(NamedTuple):
    """Candidates against a reference."""

    scores: list[Scores]
    errors: list[list[float]]


class Bounds(NamedTuple):
    """What the mean divergence is between, nats."""

    lower: float
    upper: float


def score(runners: Sequence[Runner], places: Places, *, vocabulary: int | None = None) -> Scored:
    """Run models side by side, then hold the predictions of each against those of the first.

    Args:
        runners: the reference, then whatever is compared to it; all on one device.
        places: what is scored.
        vocabulary: ids that the distributions are over; None for all of the reference's.
    Raises:
        NumericsProblem: logits that are not finite.
    """
    with torch.inference_mode():
        walked = walk(runners)
        return Scored(hold(walked.predictions, places, vocabulary=vocabulary), walked.errors)


def hold(
    predictions: Sequence[Predictions], places: Places, *, vocabulary: int | None = None
) -> list[Scores]:
    """The predictions of each model but the first, held against those of the first.

    Args:
        predictions: of models that have seen the same tokens; all on one device.
        places: what is scored.
        vocabulary: ids that the distributions are over; None for all of the first's.
    Raises:
        NumericsProblem: logits that are not finite.
    """
    parts: list[list[Compared]] = [[] for _ in predictions[1:]]
    finite = Finite()
    for rows in track(predictions[0].chunks(torch.arange(len(places.row))), "compare"):
        first, *rest = (
            finite.checked(each, places.row[rows])[:, :vocabulary].log_softmax(dim=-1)
            for each in predictions
        )
        target = places.target[rows].to(first.device)
        for found, candidate in zip(parts, rest, strict=True):
            found.append(compare(first, candidate, target))
    finite.require()
    return [Scores.joined(found, places) for found in parts]


def score_kept(
    kept: Iterator[Kept], candidate: Runner, places: Places, *, vocabulary: int
) -> tuple[Scores, Bounds]:
    """Run a candidate and hold its predictions against those in a store.

    Args:
        kept: the reference's predictions, in pieces of any sizes, as many as there are places.
        candidate: on any device.
        places: what is scored.
        vocabulary: ids that the store's distributions are over.
    Raises:
        NumericsProblem: logits that are not finite.
    """
    with torch.inference_mode():
        (predictions,) = walk([candidate]).predictions
        device, finite = predictions.device, Finite()
        parts, lower, upper, done = [], 0.0, 0.0, 0
        for piece in kept:
            for rows in pieces(torch.arange(len(piece.nll)), predictions.vocabulary):
                here = places.row[rows + done]
                logits = finite.checked(predictions, here)[:, :vocabulary].log_softmax(dim=-1)
                some = Kept(*(column[rows].to(device) for column in piece))
                told = compare_kept(some, logits, places.target[rows + done].to(device))
                parts.append(told.compared)
                lower += float(told.lower.double().sum())
                upper += float(told.upper.double().sum())
            done += len(piece.nll)
        finite.require()
    return Scores.joined(parts, places), Bounds(lower / done, upper / done)


def walk(runners: Sequence[Runner]) -> Walked:
    """Push the tokens through all models at once, one block of each in memory at a time."""
    hidden = [runner.model.embed(runner.sequences) for runner in runners]
    errors: list[list[float]] = [[] for _ in runners[1:]]
    depths = [runner.model.blocks for runner in runners]
    label = "score " + " and ".join(runner.label for runner in runners)
    for number in track(range(max(depths)), label):
        for runner, states in zip(runners, hidden, strict=True):
            if number < runner.model.blocks:
                runner.model.run(runner.sequences, states, number)
        for found, states in zip(errors, hidden[1:], strict=True):
            if min(depths) == max(depths) and states.shape == hidden[0].shape:
                found.append(relative_error(hidden[0], states))
    predictions = [
        Predictions(runner.label, runner.model, states)
        for runner, states in zip(runners, hidden, strict=True)
    ]
    return Walked(predictions, errors)


def relative_error(
    reference: Float[Tensor, "tokens hidden"], other: Float[Tensor, "tokens hidden"]
) -> float:
    """The root of the mean, over tokens, of |other - reference|² / |reference|².

    Token by token, because the first of a text can be a thousand times as long as all others.
    """
    total = 0.0
    for first, second in zip(reference.split(ROWS), other.split(ROWS), strict=True):
        left, right = first.float(), second.float()
        length = left.square().sum(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
        total += float(((right - left).square().sum(dim=-1) / length).double().sum())
    return float((total / len(reference)) ** 0.5)


class Finite:
    """How many predictions of each model hold a logit that is not finite; none may."""

    def __init__(self) -> None:
        self._wrong: Counter[str] = Counter()

    def checked(
        self, predictions: Predictions, rows: Int64[Tensor, " chunk"]
    ) -> Float32[Tensor, "chunk vocabulary"]:
        """The logits after these rows, looked at."""
        logits = predictions.logits(rows)
        self._wrong[predictions.label] += int((~logits.isfinite()).any(dim=-1).sum())
        return logits

    def require(self) -> None:
        """See that none was wrong.

        Raises:
            NumericsProblem: names the first model that gave any, and says how many.
        """
        for label, wrong in self._wrong.items():
            if wrong:
                raise NumericsProblem(
                    f"the {label} gives logits that are not finite in {wrong} predictions",
                    next_step="inspect its weights, or compute in a wider dtype",
                )
