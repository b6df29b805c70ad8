"""Calibration: sequences drawn by seed from weighted sources, up to a budget of tokens.

Each source gives its share of the tokens; where one has fewer, the others give more. The last
sequence of a source is cut where its share ends, so the budget is met to the token.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from itertools import chain
from math import ceil
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from camelpress.core.documents import require_own_names
from camelpress.core.errors import RecipeProblem
from camelpress.core.ngrams import Fingerprint
from camelpress.core.origin import locate_file
from camelpress.core.progress import note
from camelpress.core.tokens import Tokenizer
from camelpress.quantize.pool import Pool, Sample, read_pool
from camelpress.quantize.settings import Source

Mask = Literal["all", "assistant"]


@dataclass(frozen=True)
class Calibration:
    """What was drawn.

    Args:
        drawn: from each source, as a pool of its own.
        weights: of the sources.
        mask: which tokens count; the others pass through the blocks all the same.
        fingerprint: of the words of all sequences.
    """

    drawn: tuple[Pool, ...]
    weights: tuple[float, ...]
    mask: Mask
    fingerprint: Fingerprint = field(compare=False)

    @cached_property
    def samples(self) -> list[Sample]:
        """The sequences of all sources."""
        return [sample for pool in self.drawn for sample in pool.samples]

    @property
    def sequences(self) -> list[list[int]]:
        """The ids of each sequence."""
        return [sample.ids for sample in self.samples]

    @cached_property
    def counted(self) -> Bool[Tensor, " tokens"]:
        """Which tokens belong in a Hessian, in the order of `Sequences.tokens`."""
        return torch.tensor(list(chain.from_iterable(self._counts(each) for each in self.samples)))

    @property
    def tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(pool.tokens for pool in self.drawn)

    @property
    def truncated(self) -> int:
        """Conversations that go on after their sequence ends."""
        return sum(sample.truncated for sample in self.samples)

    def facts(self) -> dict[str, Any]:
        """What a report says of it: in all, and source by source in `files`."""
        files = [
            {"name": pool.name, "sha256": pool.sha256, "weight": weight}
            | {"documents": pool.documents, "unanswered": pool.unanswered}
            | self._figures(pool.samples)
            for pool, weight in zip(self.drawn, self.weights, strict=True)
        ]
        documents = sum(pool.documents for pool in self.drawn)
        return {"mask": self.mask, "documents": documents, **self._figures(self.samples)} | {
            "files": files
        }

    def _figures(self, samples: Sequence[Sample]) -> dict[str, Any]:
        return {
            "samples": len(samples),
            "tokens": sum(len(sample.ids) for sample in samples),
            "counted_tokens": sum(sum(self._counts(sample)) for sample in samples),
            "truncated": sum(sample.truncated for sample in samples),
            "lengths": _spread([len(sample.ids) for sample in samples]),
        }

    def _counts(self, sample: Sample) -> list[bool]:
        return sample.counted if self.mask == "assistant" else [True] * len(sample.ids)


def draw(
    sources: Sequence[Source],
    tokenizer: Tokenizer,
    *,
    samples: int,
    sequence_length: int,
    mask: Mask,
    seed: int,
) -> Calibration:
    """Draw sequences until `samples * sequence_length` tokens are there.

    Args:
        sources: files or data sets on the hub, with weights.
        tokenizer: of the model to quantize.
        samples: number of full sequences' worth of tokens.
        sequence_length: tokens; at most the positions of the model.
        mask: which tokens count: all, or answers and plain texts.
        seed: the same seed draws the same sequences, whatever the other sources hold.
    Raises:
        RecipeProblem: there is no source, one is empty or has too small a weight to give a token,
            or all of them hold less than one full sequence.
        DataProblem: a data set on the hub cannot be had.
    """
    if not sources:
        raise RecipeProblem(
            "there is no calibration text", next_step="give --calibration FILE, or --method rtn"
        )
    files = [locate_file(source.source) for source in sources]
    require_own_names([file.name for file in files])
    pools = [read_pool(file, tokenizer, sequence_length) for file in files]
    held, budget = sum(pool.tokens for pool in pools), samples * sequence_length
    if held < sequence_length:
        raise RecipeProblem(
            f"the calibration texts hold {held} tokens, less than one sequence of "
            f"{sequence_length}",
            next_step="give more text, or a shorter --sequence-length",
        )
    if held < budget:
        note(
            f"calibration holds {held} tokens, fewer than the {samples} x {sequence_length} "
            "asked for"
        )
    weights = tuple(source.weight for source in sources)
    quotas = shares(budget, weights, [pool.tokens for pool in pools])
    drawn = tuple(
        replace(pool, samples=_drawn(pool, quota, f"{seed}/{place}"))
        for place, (pool, quota) in enumerate(zip(pools, quotas, strict=True))
    )
    texts = (tokenizer.words(sample.ids) for pool in drawn for sample in pool.samples)
    return Calibration(drawn, weights, mask, Fingerprint.of(texts))


def shares(budget: int, weights: Sequence[float], held: Sequence[int]) -> list[int]:
    """A budget divided by weights, where nobody gives more than it holds.

    What one lacks the others give, by their weights. The sum is the budget, or all there is.
    """
    given = dict.fromkeys(range(len(held)), 0)
    able = set(given)
    while able:
        left = min(budget, sum(held)) - sum(given[place] for place in given.keys() - able)
        given |= _divided(left, {place: weights[place] for place in sorted(able)})
        short = {place for place in able if given[place] >= held[place]}
        given |= {place: held[place] for place in short}
        able -= short
        if not short:
            break
    return [given[place] for place in sorted(given)]


def _divided(total: int, weights: dict[int, float]) -> dict[int, int]:
    """Whole numbers in the ratio of weights that add up: the largest remainders are rounded up."""
    whole = sum(map(Fraction, weights.values()))
    exact = {place: total * Fraction(weight) / whole for place, weight in weights.items()}
    given = {place: int(part) for place, part in exact.items()}
    rest = total - sum(given.values())
    for place in sorted(exact, key=lambda place: given[place] - exact[place])[:rest]:
        given[place] += 1
    return given


def _drawn(pool: Pool, quota: int, seed: str) -> list[Sample]:
    if quota < 1:
        raise RecipeProblem(
            f"{pool.name} has too small a weight to give a single token",
            next_step="give it a larger weight, or more --samples",
        )
    order = list(pool.samples)
    random.Random(seed).shuffle(order)  # noqa: S311 - a draw, not a secret
    drawn: list[Sample] = []
    for sample in order:
        if quota <= 0:
            break
        drawn.append(sample.cut(quota))
        quota -= len(drawn[-1].ids)
    return drawn


def _spread(lengths: Sequence[int]) -> dict[str, int]:
    ordered = sorted(lengths)
    at = {"min": 0.0, "median": 0.5, "p90": 0.9, "max": 1.0}
    return {name: ordered[max(0, ceil(part * len(ordered)) - 1)] for name, part in at.items()}
