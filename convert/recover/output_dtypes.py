"""The type of each recovered tensor: as the diff states it, or as its sums show it.

Most models have one 16-bit type, and some have norms, embedding or head in another one. Without a
statement in the diff the matrices vote for the main type. A tensor has the type that its sums fit
best. Float32 is different, because any sum fits it: it is believed only where most matrices prove
the base by their 16-bit sums, and the sums of the tensor are exact and no 16-bit numbers.
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
    """The types of a tuned model.

    Args:
        main: of most matrices; None where their sums fit no 16-bit type.
        tensors: name to type.
        unexplained: tensors whose sums are numbers of no type that they may have.
        stated: whether the diff states the types.
        proven: whether the base is the one of which the diff states the digest.
    """

    main_dtype: torch.dtype | None
    tensors: Mapping[str, torch.dtype]
    unexplained: frozenset[str] = frozenset()
    from_metadata: bool = False
    base_is_proven: bool = False

    def count_as_main_dtype(self, name: str, counts: FitCounts) -> FitCounts:
        """Counts the sums of a tensor that fit its own type as those that fit the main one."""
        if self.main_dtype is None or (name in self.unexplained and not self.from_metadata):
            return counts
        return counts.with_main_dtype(self.tensors[name], self.main_dtype)


def decide_dtypes(
    chosen: Sequence[TensorPlan], evidence: Mapping[str, TensorSample], record: DiffMetadata
) -> OutputDtypes:
    """Decides the type of every tensor of the output.

    Args:
        chosen: its tensors.
        evidence: by name; a tensor without any has the main type.
        record: the statements of the diff.
    """
    if record.other_dtypes is not None:
        return _dtypes_from_metadata(chosen, evidence, record)
    return _dtypes_from_sums(chosen, evidence, record.main_dtype)


def _dtypes_from_metadata(
    chosen: Sequence[TensorPlan], evidence: Mapping[str, TensorSample], record: DiffMetadata
) -> OutputDtypes:
    tensors = {plan.name: _metadata_dtype(plan, evidence.get(plan.name), record) for plan in chosen}
    unexplained = {
        plan.name
        for plan in chosen
        if (counts := _sum_counts(plan, evidence)).tested
        and not counts.fits_dtype(tensors[plan.name])
    }
    digest = combine_digests({name: each.digest for name, each in evidence.items()})
    return OutputDtypes(
        record.main_dtype,
        tensors,
        frozenset(unexplained),
        from_metadata=True,
        base_is_proven=record.base_digest == digest,
    )


def _metadata_dtype(
    plan: TensorPlan, known: TensorSample | None, record: DiffMetadata
) -> torch.dtype:
    """Returns the type of the statement, unless the diff's own values are taken and do not fit."""
    dtype = record.tuned_dtype(plan.name) or torch.float32
    own = plan.rule == "absolute" and known is not None
    return torch.float32 if own and known and not known.own_counts.fits_dtype(dtype) else dtype


def _dtypes_from_sums(
    chosen: Sequence[TensorPlan], evidence: Mapping[str, TensorSample], stated: torch.dtype | None
) -> OutputDtypes:
    votes = _vote(chosen, evidence)
    main = stated if stated in HALF_DTYPES else votes.main_dtype
    tensors, unexplained = {}, set()
    for plan in chosen:
        known = evidence.get(plan.name)
        if known is None:
            dtype: torch.dtype | None = main
        elif plan.rule == "absolute":
            dtype = _best_dtype(known.own_counts, main)
        else:
            dtype = _dtype_of_sums(plan, known, main, votes)
            if dtype is None:
                unexplained.add(plan.name)
                dtype = _best_dtype(known.counts, main)
        tensors[plan.name] = dtype or torch.float32
    return OutputDtypes(main, tensors, frozenset(unexplained))


def _sum_counts(plan: TensorPlan, evidence: Mapping[str, TensorSample]) -> FitCounts:
    known = evidence.get(plan.name)
    return known.counts if known is not None and plan.rule != "absolute" else FitCounts()


@dataclass(frozen=True)
class _DtypeVotes:
    """The types that most tensors of a model fit best.

    Args:
        main: of the matrices.
        proven: whether most of them fit a 16-bit type.
        vectors: of the vectors, by the last part of their names.
    """

    main_dtype: torch.dtype | None
    base_is_proven: bool
    vectors: Mapping[str, torch.dtype | None]


def _vote(chosen: Sequence[TensorPlan], evidence: Mapping[str, TensorSample]) -> _DtypeVotes:
    """Lets the tensors vote for their types.

    A matrix that no sum of which differs from the base's weight does not vote if others do: as a
    float16 base, it is all float16 numbers.
    """
    matrices = [plan for plan in chosen if len(plan.shape) == 2 and plan.name in evidence]
    summed = [plan for plan in matrices if _sum_counts(plan, evidence).tested]
    changed = [plan for plan in summed if evidence[plan.name].changed_sums] or summed
    counts = [_sum_counts(plan, evidence) for plan in changed]
    if not summed:
        counts = [evidence[plan.name].own_counts for plan in matrices]
    best = [_best_dtype(each, None) for each in counts]
    main = _most_common([dtype for dtype in best if dtype])
    kinds: dict[str, list[torch.dtype | None]] = {}
    for plan in chosen:
        if len(plan.shape) == 1 and (vector := _sum_counts(plan, evidence)).tested:
            kinds.setdefault(_parameter_name(plan), []).append(_best_dtype(vector, main))
    proven = bool(summed) and sum(dtype is not None for dtype in best) > len(best) / 2
    return _DtypeVotes(main, proven, {kind: _most_common(types) for kind, types in kinds.items()})


def _parameter_name(plan: TensorPlan) -> str:
    return plan.name.rpartition(".")[2]


def _most_common(types: Sequence[torch.dtype | None]) -> torch.dtype | None:
    return Counter(types).most_common(1)[0][0] if types else None


def _dtype_of_sums(
    plan: TensorPlan, known: TensorSample, main: torch.dtype | None, votes: _DtypeVotes
) -> torch.dtype | None:
    """Returns the type that the sums show, or None where they show none.

    Norms lie near 1, where the sum of any three float16 numbers is one again; so a vector is
    believed to be of another 16-bit type only if most vectors are.
    """
    if not known.counts.tested:
        return main
    best = _best_dtype(known.counts, main)
    if best is None:
        return torch.float32 if known.needs_float32 and votes.base_is_proven else None
    matrix = len(plan.shape) > 1
    shown = (
        known.changed_sums >= MIN_CHANGED_SUMS
        if matrix
        else best is votes.vectors.get(_parameter_name(plan))
    )
    if best is main or shown:
        return best
    return main if main and known.counts.fits_dtype(main) else None


def _best_dtype(counts: FitCounts, main: torch.dtype | None) -> torch.dtype | None:
    """Returns the 16-bit type that most values fit, the main one of equals; None for neither."""
    order = sorted(HALF_DTYPES, key=lambda dtype: dtype is not main)
    best = max(order, key=counts.fit_share)
    return best if counts.fits_dtype(best) else None
