"""Decides the dtype of each recovered tensor, from the diff's header or from its sums.

Most models have one 16-bit dtype, and some have norms, embedding or head in another one. Without a
statement in the header, the matrices vote for the main dtype, and each tensor gets the dtype its
sums fit best. Any sum fits float32. Float32 is therefore accepted only if most matrices prove the
base by their 16-bit sums, and if the sums of the tensor are exact but no 16-bit numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from camelpress.convert.inputs.base_sample import (
    HALF_DTYPES,
    MIN_CHANGED_SUMS,
    FitCounts,
    TensorSample,
    combine_digests,
)
from camelpress.convert.inputs.diff_metadata import DiffMetadata
from camelpress.convert.recover.diff_rules import TensorPlan


@dataclass(frozen=True)
class OutputDtypes:
    """Dtypes of a tuned model.

    Args:
        main_dtype: dtype of most matrices; None if their sums fit no 16-bit dtype.
        tensors: tensor name to dtype.
        unexplained: names of tensors with sums that fit no possible dtype.
        from_metadata: True if the diff's header states the dtypes.
        base_is_proven: True if the base has the digest in the diff's header.
    """

    main_dtype: torch.dtype | None
    tensors: Mapping[str, torch.dtype]
    unexplained: frozenset[str] = frozenset()
    from_metadata: bool = False
    base_is_proven: bool = False

    def count_as_main_dtype(self, name: str, counts: FitCounts) -> FitCounts:
        """Counts sums that fit the tensor's own dtype as sums that fit the main dtype."""
        if self.main_dtype is None or (name in self.unexplained and not self.from_metadata):
            return counts
        return counts.with_main_dtype(self.tensors[name], self.main_dtype)


def decide_dtypes(
    plans: Sequence[TensorPlan], samples: Mapping[str, TensorSample], metadata: DiffMetadata
) -> OutputDtypes:
    """Decides the dtype of every output tensor.

    Args:
        plans: plans of the output tensors.
        samples: name to sample; a tensor without one gets the main dtype.
        metadata: header of the diff.
    """
    if metadata.other_dtypes is not None:
        return _dtypes_from_metadata(plans, samples, metadata)
    return _dtypes_from_sums(plans, samples, metadata.main_dtype)


def _dtypes_from_metadata(
    plans: Sequence[TensorPlan], samples: Mapping[str, TensorSample], metadata: DiffMetadata
) -> OutputDtypes:
    tensors = {plan.name: _metadata_dtype(plan, samples.get(plan.name), metadata) for plan in plans}
    unexplained = {
        plan.name
        for plan in plans
        if (counts := _sum_counts(plan, samples)).tested
        and not counts.fits_dtype(tensors[plan.name])
    }
    digest = combine_digests({name: sample.digest for name, sample in samples.items()})
    return OutputDtypes(
        metadata.main_dtype,
        tensors,
        frozenset(unexplained),
        from_metadata=True,
        base_is_proven=metadata.base_digest == digest,
    )


def _metadata_dtype(
    plan: TensorPlan, sample: TensorSample | None, metadata: DiffMetadata
) -> torch.dtype:
    """Returns the dtype in the header, or float32 for absolute values that do not fit it."""
    dtype = metadata.tuned_dtype(plan.name) or torch.float32
    is_absolute = plan.rule == "absolute" and sample is not None
    return (
        torch.float32
        if is_absolute and sample and not sample.own_counts.fits_dtype(dtype)
        else dtype
    )


def _dtypes_from_sums(
    plans: Sequence[TensorPlan],
    samples: Mapping[str, TensorSample],
    header_dtype: torch.dtype | None,
) -> OutputDtypes:
    votes = _vote(plans, samples)
    main_dtype = header_dtype if header_dtype in HALF_DTYPES else votes.main_dtype
    tensors, unexplained = {}, set()
    for plan in plans:
        sample = samples.get(plan.name)
        if sample is None:
            dtype: torch.dtype | None = main_dtype
        elif plan.rule == "absolute":
            dtype = _best_dtype(sample.own_counts, main_dtype)
        else:
            dtype = _dtype_of_sums(plan, sample, main_dtype, votes)
            if dtype is None:
                unexplained.add(plan.name)
                dtype = _best_dtype(sample.counts, main_dtype)
        tensors[plan.name] = dtype or torch.float32
    return OutputDtypes(main_dtype, tensors, frozenset(unexplained))


def _sum_counts(plan: TensorPlan, samples: Mapping[str, TensorSample]) -> FitCounts:
    sample = samples.get(plan.name)
    return sample.counts if sample is not None and plan.rule != "absolute" else FitCounts()


@dataclass(frozen=True)
class _DtypeVotes:
    """Dtypes that most tensors of a model fit best.

    Args:
        main_dtype: dtype of the matrices.
        base_is_proven: True if most matrices fit a 16-bit dtype.
        vectors: last part of a vector's name to its dtype.
    """

    main_dtype: torch.dtype | None
    base_is_proven: bool
    vectors: Mapping[str, torch.dtype | None]


def _vote(plans: Sequence[TensorPlan], samples: Mapping[str, TensorSample]) -> _DtypeVotes:
    """Lets the tensors vote for the main dtype and the dtype of each kind of vector.

    A matrix without any change of the base's weights votes only if all matrices are like it: all
    its sums are the numbers of a float16 base.
    """
    matrices = [plan for plan in plans if len(plan.shape) == 2 and plan.name in samples]
    summed = [plan for plan in matrices if _sum_counts(plan, samples).tested]
    changed = [plan for plan in summed if samples[plan.name].changed_sums] or summed
    counts = [_sum_counts(plan, samples) for plan in changed]
    if not summed:
        counts = [samples[plan.name].own_counts for plan in matrices]
    best = [_best_dtype(fit_counts, None) for fit_counts in counts]
    main_dtype = _most_common([dtype for dtype in best if dtype])
    dtypes_by_kind: dict[str, list[torch.dtype | None]] = {}
    for plan in plans:
        if len(plan.shape) == 1 and (vector := _sum_counts(plan, samples)).tested:
            dtypes_by_kind.setdefault(_parameter_name(plan), []).append(
                _best_dtype(vector, main_dtype)
            )
    base_is_proven = bool(summed) and sum(dtype is not None for dtype in best) > len(best) / 2
    return _DtypeVotes(
        main_dtype,
        base_is_proven,
        {kind: _most_common(types) for kind, types in dtypes_by_kind.items()},
    )


def _parameter_name(plan: TensorPlan) -> str:
    return plan.name.rpartition(".")[2]


def _most_common(types: Sequence[torch.dtype | None]) -> torch.dtype | None:
    return Counter(types).most_common(1)[0][0] if types else None


def _dtype_of_sums(
    plan: TensorPlan, sample: TensorSample, main_dtype: torch.dtype | None, votes: _DtypeVotes
) -> torch.dtype | None:
    """Returns the dtype shown by the sums, or None if they show none.

    Norms lie near 1, and there the sum of any three float16 numbers is a float16 number, too. A
    vector therefore gets another 16-bit dtype than the main one only if most vectors do.
    """
    if not sample.counts.tested:
        return main_dtype
    best = _best_dtype(sample.counts, main_dtype)
    if best is None:
        return torch.float32 if sample.needs_float32 and votes.base_is_proven else None
    matrix = len(plan.shape) > 1
    shown = (
        sample.changed_sums >= MIN_CHANGED_SUMS
        if matrix
        else best is votes.vectors.get(_parameter_name(plan))
    )
    if best is main_dtype or shown:
        return best
    return main_dtype if main_dtype and sample.counts.fits_dtype(main_dtype) else None


def _best_dtype(counts: FitCounts, main_dtype: torch.dtype | None) -> torch.dtype | None:
    """Returns the 16-bit dtype that most values fit, the main one in a tie; None for no fit."""
    order = sorted(HALF_DTYPES, key=lambda dtype: dtype is not main_dtype)
    best = max(order, key=counts.fit_share)
    return best if counts.fits_dtype(best) else None
