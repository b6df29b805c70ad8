"""Calibration: draws sequences by seed from weighted sources, up to a budget of tokens.

Each source contributes its share of the tokens; if one has fewer, the others contribute more. The
last sequence of a source is cut at the end of its share, so the budget is met exactly.
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
    """Calibration sequences from one source, with facts about its file.

    Args:
        name: name of the source in reports.
        sha256: SHA-256 of its file.
        weight: requested share of the tokens, as a ratio.
        rows: number of rows in the file; 1 for prose.
        omissions: number of omitted items of the file by unit and reason.
        documents: number of documents in the file.
        unanswered: number of conversations read but left out, without an answer in their length.
        samples: sequences drawn from the source.
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
        """Number of tokens of all sequences."""
        return sum(len(sample.ids) for sample in self.samples)


@dataclass(frozen=True)
class Calibration:
    """Calibration sequences of all sources.

    Args:
        sources: sequences from each source.
        mask: `all` tokens count, or those of the `assistant`; all pass through the blocks.
        fingerprint: n-grams of the words of all sequences.
    """

    sources: tuple[SourceUsage, ...]
    mask: CalibrationMask
    fingerprint: NgramFingerprint = field(compare=False)

    @cached_property
    def samples(self) -> list[CalibrationSequence]:
        """Sequences of all sources."""
        return [sample for source in self.sources for sample in source.samples]

    @property
    def sequences(self) -> list[list[int]]:
        """Token ids of each sequence."""
        return [sample.ids for sample in self.samples]

    @cached_property
    def token_mask(self) -> Bool[Tensor, " tokens"]:
        """Mask of the tokens that count in a Hessian, in the order of the sequences."""
        masks = (self._sample_mask(sample) for sample in self.samples)
        return torch.tensor(list(chain.from_iterable(masks)))

    @property
    def tokens(self) -> int:
        """Number of tokens of all sequences."""
        return sum(source.tokens for source in self.sources)

    @property
    def truncated(self) -> int:
        """Number of conversations cut at the end of their sequence."""
        return sum(sample.truncated for sample in self.samples)

    def report_facts(self) -> dict[str, Any]:
        """Facts for the report: totals, and each source in `files`."""
        files = [
            {"name": source.name, "sha256": source.sha256, "weight": source.weight}
            | {"rows": source.rows, "omissions": source.omissions}
            | {"documents": source.documents, "unanswered": source.unanswered}
            | self._sequence_facts(source.samples)
            for source in self.sources
        ]
        return (
            {"mask": self.mask, "rows": sum(source.rows for source in self.sources)}
            | {"omissions": merge_counts(source.omissions for source in self.sources)}
            | {"documents": sum(source.documents for source in self.sources)}
            | self._sequence_facts(self.samples)
            | {"files": files}
        )

    def _sequence_facts(self, samples: Sequence[CalibrationSequence]) -> dict[str, Any]:
        return {
            "samples": len(samples),
            "tokens": sum(len(sample.ids) for sample in samples),
            "counted_tokens": sum(sum(self._sample_mask(sample)) for sample in samples),
            "truncated": sum(sample.truncated for sample in samples),
            "lengths": _length_quantiles([len(sample.ids) for sample in samples]),
        }

    def _sample_mask(self, sample: CalibrationSequence) -> list[bool]:
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
    """Draws sequences up to a budget of `samples * sequence_length` tokens.

    Args:
        sources: files or data sets on the hub, with weights.
        tokenizer: tokenizer of the model to quantize.
        samples: budget in full sequences.
        sequence_length: tokens of a sequence, at most the positions of the model.
        mask: `all` tokens count, or only answers and plain texts (`assistant`).
        seed: seed of each source's order, independent of the other sources.
    Raises:
        RecipeProblem: there is no source, a source is empty or its weight too small for a token,
            all sources together hold less than one full sequence, or no token counts.
        DataProblem: a data set on the hub is unavailable.
    """
    if not sources:
        raise RecipeProblem(
            "there is no calibration text", next_step="give --calibration FILE, or --method rtn"
        )
    files = [locate_file(source.source) for source in sources]
    require_unique_names([file.name for file in files])
    pools = [
        SequenceSource(file, tokenizer, sequence_length, f"{seed}/{index}")
        for index, file in enumerate(files)
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
        note(f"calibration holds {sum(quotas)} tokens, fewer than {samples} x {sequence_length}")
    usages = tuple(
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
    texts = (tokenizer.decode_text(sample.ids) for usage in usages for sample in usage.samples)
    calibration = Calibration(usages, mask, NgramFingerprint.from_texts(texts))
    if not calibration.token_mask.any():
        raise RecipeProblem(
            f"none of the {calibration.tokens} tokens drawn counts: every answer is cut off",
            next_step="use --calibration-mask all, or more --samples",
        )
    return calibration


def _fill_sources(
    pools: Sequence[SequenceSource], weights: Sequence[float], budget: int
) -> list[int]:
    """Reads each source up to its share; an exhausted source increases the shares of the others."""
    while True:
        exhausted = [pool.exhausted for pool in pools]
        limits = [pool.tokens if pool.exhausted else budget for pool in pools]
        quotas = divide_budget(budget, weights, limits)
        for pool, quota in zip(pools, quotas, strict=True):
            if not quota:
                raise RecipeProblem(
                    f"{pool.file.name} has too small a weight to give a single token",
                    next_step="give it a larger weight, or more --samples",
                )
            pool.read_tokens(quota)
        if [pool.exhausted for pool in pools] == exhausted:
            return quotas


def divide_budget(budget: int, weights: Sequence[float], limits: Sequence[int]) -> list[int]:
    """Divides a budget by weights, with a limit for each share.

    Shares above their limit are cut, and the rest is divided among the others by their weights.
    The sum of the shares is the budget, or the sum of the limits if that is smaller.
    """
    shares = dict.fromkeys(range(len(limits)), 0)
    open_indices = set(shares)
    while open_indices:
        fixed_tokens = sum(shares[index] for index in shares.keys() - open_indices)
        rest = min(budget, sum(limits)) - fixed_tokens
        shares |= _largest_remainder(
            rest, {index: weights[index] for index in sorted(open_indices)}
        )
        full_indices = {index for index in open_indices if shares[index] >= limits[index]}
        shares |= {index: limits[index] for index in full_indices}
        open_indices -= full_indices
        if not full_indices:
            break
    return [shares[index] for index in sorted(shares)]


def _largest_remainder(total: int, weights: dict[int, float]) -> dict[int, int]:
    """Divides a total by weights into whole numbers; the largest remainders are rounded up."""
    weight_sum = sum(map(Fraction, weights.values()))
    exact = {index: total * Fraction(weight) / weight_sum for index, weight in weights.items()}
    shares = {index: int(share) for index, share in exact.items()}
    rest = total - sum(shares.values())
    for index in sorted(exact, key=lambda index: shares[index] - exact[index])[:rest]:
        shares[index] += 1
    return shares


def _cut_to_quota(pool: SequenceSource, quota: int) -> list[CalibrationSequence]:
    """Returns the first sequences of a source, with `quota` tokens in total."""
    samples = []
    for sample in pool.sequences:
        if quota <= 0:
            break
        samples.append(sample.truncate(quota))
        quota -= len(samples[-1].ids)
    return samples


def _length_quantiles(lengths: Sequence[int]) -> dict[str, int]:
    sorted_lengths = sorted(lengths)
    quantiles = {"min": 0.0, "median": 0.5, "p90": 0.9, "max": 1.0}
    return {
        name: sorted_lengths[max(0, ceil(fraction * len(sorted_lengths)) - 1)]
        for name, fraction in quantiles.items()
    }
