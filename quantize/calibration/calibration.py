"""Calibration: sequences drawn by seed from weighted sources, up to a budget of tokens.

Each source gives its share of the tokens; where one has fewer, the others give more. The last
sequence of a source is cut where its share ends, so the budget is met to the token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from itertools import chain
from math import ceil
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from camelpress.core.documents.document_reader import require_unique_names
from camelpress.core.documents.ngram_overlap import NgramFingerprint
from camelpress.core.documents.omissions import OmissionCounts, merge_counts
from camelpress.core.errors import RecipeProblem
from camelpress.core.hub.model_location import locate_file
from camelpress.core.progress import note
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.quantize.calibration.sequence_source import CalibrationSequence, SequenceSource
from camelpress.quantize.settings import CalibrationMask, CalibrationSource


@dataclass(frozen=True)
class SourceUsage:
    """What one source gave.

    Args:
        name: of the source in reports.
        sha256: of its file.
        weight: as asked for.
        rows: number of rows in the file; 1 where it is prose.
        omissions: what is left out of the file, counted by unit and reason.
        documents: in the file.
        unanswered: conversations left out, of those that were looked at.
        samples: the sequences.
    """

    name: str
    sha256: str
    weight: float
    rows: int
    omissions: OmissionCounts
    documents: int
    unanswered: int
    samples: list[CalibrationSequence]

    @property
    def tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(len(sample.ids) for sample in self.samples)


@dataclass(frozen=True)
class Calibration:
    """What was drawn.

    Args:
        drawn: from each source.
        mask: which tokens count; the others pass through the blocks all the same.
        fingerprint: of the words of all sequences.
    """

    sources: tuple[SourceUsage, ...]
    mask: CalibrationMask
    fingerprint: NgramFingerprint = field(compare=False)

    @cached_property
    def samples(self) -> list[CalibrationSequence]:
        """The sequences of all sources."""
        return [sample for each in self.sources for sample in each.samples]

    @property
    def sequences(self) -> list[list[int]]:
        """The ids of each sequence."""
        return [sample.ids for sample in self.samples]

    @cached_property
    def token_mask(self) -> Bool[Tensor, " tokens"]:
        """Which tokens belong in a Hessian, in the order of `Sequences.tokens`."""
        return torch.tensor(list(chain.from_iterable(self._mask_of(each) for each in self.samples)))

    @property
    def tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(each.tokens for each in self.sources)

    @property
    def truncated(self) -> int:
        """Conversations that go on after their sequence ends."""
        return sum(sample.truncated for sample in self.samples)

    def report_facts(self) -> dict[str, Any]:
        """What a report says of it: in all, and source by source in `files`."""
        files = [
            {"name": each.name, "sha256": each.sha256, "weight": each.weight}
            | {"rows": each.rows, "omissions": each.omissions}
            | {"documents": each.documents, "unanswered": each.unanswered}
            | self._sequence_facts(each.samples)
            for each in self.sources
        ]
        return (
            {"mask": self.mask, "rows": sum(each.rows for each in self.sources)}
            | {"omissions": merge_counts(each.omissions for each in self.sources)}
            | {"documents": sum(each.documents for each in self.sources)}
            | self._sequence_facts(self.samples)
            | {"files": files}
        )

    def _sequence_facts(self, samples: Sequence[CalibrationSequence]) -> dict[str, Any]:
        return {
            "samples": len(samples),
            "tokens": sum(len(sample.ids) for sample in samples),
            "counted_tokens": sum(sum(self._mask_of(sample)) for sample in samples),
            "truncated": sum(sample.truncated for sample in samples),
            "lengths": _length_quantiles([len(sample.ids) for sample in samples]),
        }

    def _mask_of(self, sample: CalibrationSequence) -> list[bool]:
        return sample.token_mask if self.mask == "assistant" else [True] * len(sample.ids)


def draw_calibration(
    sources: Sequence[CalibrationSource],
    tokenizer: Tokenizer,
    *,
    samples: int,
    sequence_length: int,
    mask: CalibrationMask,
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
            all of them hold less than one full sequence, or no token counts.
        DataProblem: a data set on the hub cannot be had.
    """
    if not sources:
        raise RecipeProblem(
            "there is no calibration text", next_step="give --calibration FILE, or --method rtn"
        )
    files = [locate_file(source.source) for source in sources]
    require_unique_names([file.name for file in files])
    pools = [
        SequenceSource(file, tokenizer, sequence_length, f"{seed}/{place}")
        for place, file in enumerate(files)
    ]
    weights = [source.weight for source in sources]
    quotas = _fill_sources(pools, weights, samples * sequence_length)
    if sum(quotas) < sequence_length:
        raise RecipeProblem(
            f"the calibration texts hold {sum(quotas)} tokens, less than one sequence of "
            f"{sequence_length}",
            next_step="give more text, or a shorter --sequence-length",
        )
    if sum(quotas) < samples * sequence_length:
        note(
            f"calibration holds {sum(quotas)} tokens, fewer than the {samples} x "
            f"{sequence_length} asked for"
        )
    drawn = tuple(
        SourceUsage(
            name=pool.file.name,
            sha256=pool.corpus.sha256,
            weight=weight,
            rows=pool.corpus.rows,
            omissions=pool.corpus.omissions,
            documents=len(pool.corpus.documents),
            unanswered=pool.unanswered,
            samples=_cut_to_quota(pool, quota),
        )
        for pool, weight, quota in zip(pools, weights, quotas, strict=True)
    )
    texts = (tokenizer.decode_text(sample.ids) for each in drawn for sample in each.samples)
    calibration = Calibration(drawn, mask, NgramFingerprint.from_texts(texts))
    if not calibration.token_mask.any():
        raise RecipeProblem(
            f"none of the {calibration.tokens} tokens drawn counts: every answer is cut off",
            next_step="use --calibration-mask all, or more --samples",
        )
    return calibration


def _fill_sources(
    pools: Sequence[SequenceSource], weights: Sequence[float], budget: int
) -> list[int]:
    """Fill every pool to its share; where one runs dry, the others' shares grow."""
    while True:
        dry = [pool.exhausted for pool in pools]
        held = [pool.tokens if pool.exhausted else budget for pool in pools]
        quotas = divide_budget(budget, weights, held)
        for pool, quota in zip(pools, quotas, strict=True):
            if not quota:
                raise RecipeProblem(
                    f"{pool.file.name} has too small a weight to give a single token",
                    next_step="give it a larger weight, or more --samples",
                )
            pool.read_tokens(quota)
        if [pool.exhausted for pool in pools] == dry:
            return quotas


def divide_budget(budget: int, weights: Sequence[float], held: Sequence[int]) -> list[int]:
    """A budget divided by weights, where nobody gives more than it holds.

    What one lacks the others give, by their weights. The sum is the budget, or all there is.
    """
    given = dict.fromkeys(range(len(held)), 0)
    able = set(given)
    while able:
        left = min(budget, sum(held)) - sum(given[place] for place in given.keys() - able)
        given |= _largest_remainder(left, {place: weights[place] for place in sorted(able)})
        short = {place for place in able if given[place] >= held[place]}
        given |= {place: held[place] for place in short}
        able -= short
        if not short:
            break
    return [given[place] for place in sorted(given)]


def _largest_remainder(total: int, weights: dict[int, float]) -> dict[int, int]:
    """Whole numbers in the ratio of weights that add up: the largest remainders are rounded up."""
    whole = sum(map(Fraction, weights.values()))
    exact = {place: total * Fraction(weight) / whole for place, weight in weights.items()}
    given = {place: int(part) for place, part in exact.items()}
    rest = total - sum(given.values())
    for place in sorted(exact, key=lambda place: given[place] - exact[place])[:rest]:
        given[place] += 1
    return given


def _cut_to_quota(pool: SequenceSource, quota: int) -> list[CalibrationSequence]:
    """The first sequences of a pool, so many tokens in all."""
    cut = []
    for sample in pool.sequences:
        if quota <= 0:
            break
        cut.append(sample.truncate(quota))
        quota -= len(cut[-1].ids)
    return cut


def _length_quantiles(lengths: Sequence[int]) -> dict[str, int]:
    ordered = sorted(lengths)
    at = {"min": 0.0, "median": 0.5, "p90": 0.9, "max": 1.0}
    return {name: ordered[max(0, ceil(part * len(ordered)) - 1)] for name, part in at.items()}
