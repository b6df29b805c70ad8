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

from camelpress.convert.inputs.base_sample import CANDIDATES, FEW, Counts, Evidence, joined_digest
from camelpress.convert.inputs.diff_metadata import DiffRecord
from camelpress.convert.recover.diff_rules import Plan


@dataclass(frozen=True)
class TensorTypes:
    """The types of a tuned model.

    Args:
        main: of most matrices; None where their sums fit no 16-bit type.
        tensors: name to type.
        unexplained: tensors whose sums are numbers of no type that they may have.
        stated: whether the diff states the types.
        proven: whether the base is the one of which the diff states the digest.
    """

    main: torch.dtype | None
    tensors: Mapping[str, torch.dtype]
    unexplained: frozenset[str] = frozenset()
    stated: bool = False
    proven: bool = False

    def judged(self, name: str, counts: Counts) -> Counts:
        """Counts the sums of a tensor that fit its own type as those that fit the main one."""
        if self.main is None or (name in self.unexplained and not self.stated):
            return counts
        return counts.counted_as(self.tensors[name], self.main)


def tensor_types(
    chosen: Sequence[Plan], evidence: Mapping[str, Evidence], record: DiffRecord
) -> TensorTypes:
    """Decides the type of every tensor of the output.

    Args:
        chosen: its tensors.
        evidence: by name; a tensor without any has the main type.
        record: the statements of the diff.
    """
    if record.others is not None:
        return _recorded(chosen, evidence, record)
    return _shown(chosen, evidence, record.main)


def _recorded(
    chosen: Sequence[Plan], evidence: Mapping[str, Evidence], record: DiffRecord
) -> TensorTypes:
    tensors = {plan.name: _stated(plan, evidence.get(plan.name), record) for plan in chosen}
    unexplained = {
        plan.name
        for plan in chosen
        if (counts := _sums(plan, evidence)).tested and not counts.fit(tensors[plan.name])
    }
    digest = joined_digest({name: each.digest for name, each in evidence.items()})
    return TensorTypes(
        record.main, tensors, frozenset(unexplained), stated=True, proven=record.base == digest
    )


def _stated(plan: Plan, known: Evidence | None, record: DiffRecord) -> torch.dtype:
    """Returns the type of the statement, unless the diff's own values are taken and do not fit."""
    dtype = record.tuned(plan.name) or torch.float32
    own = plan.rule == "absolute" and known is not None
    return torch.float32 if own and known and not known.alone.fit(dtype) else dtype


def _shown(
    chosen: Sequence[Plan], evidence: Mapping[str, Evidence], stated: torch.dtype | None
) -> TensorTypes:
    votes = _votes(chosen, evidence)
    main = stated if stated in CANDIDATES else votes.main
    tensors, unexplained = {}, set()
    for plan in chosen:
        known = evidence.get(plan.name)
        if known is None:
            dtype: torch.dtype | None = main
        elif plan.rule == "absolute":
            dtype = _best(known.alone, main)
        else:
            dtype = _of_sums(plan, known, main, votes)
            if dtype is None:
                unexplained.add(plan.name)
                dtype = _best(known.counts, main)
        tensors[plan.name] = dtype or torch.float32
    return TensorTypes(main, tensors, frozenset(unexplained))


def _sums(plan: Plan, evidence: Mapping[str, Evidence]) -> Counts:
    known = evidence.get(plan.name)
    return known.counts if known is not None and plan.rule != "absolute" else Counts()


@dataclass(frozen=True)
class _Votes:
    """The types that most tensors of a model fit best.

    Args:
        main: of the matrices.
        proven: whether most of them fit a 16-bit type.
        vectors: of the vectors, by the last part of their names.
    """

    main: torch.dtype | None
    proven: bool
    vectors: Mapping[str, torch.dtype | None]


def _votes(chosen: Sequence[Plan], evidence: Mapping[str, Evidence]) -> _Votes:
    """Lets the tensors vote for their types.

    A matrix that no sum of which differs from the base's weight does not vote if others do: as a
    float16 base, it is all float16 numbers.
    """
    matrices = [plan for plan in chosen if len(plan.shape) == 2 and plan.name in evidence]
    summed = [plan for plan in matrices if _sums(plan, evidence).tested]
    changed = [plan for plan in summed if evidence[plan.name].changed] or summed
    counts = [_sums(plan, evidence) for plan in changed]
    if not summed:
        counts = [evidence[plan.name].alone for plan in matrices]
    best = [_best(each, None) for each in counts]
    main = _most([dtype for dtype in best if dtype])
    kinds: dict[str, list[torch.dtype | None]] = {}
    for plan in chosen:
        if len(plan.shape) == 1 and (vector := _sums(plan, evidence)).tested:
            kinds.setdefault(_kind(plan), []).append(_best(vector, main))
    proven = bool(summed) and sum(dtype is not None for dtype in best) > len(best) / 2
    return _Votes(main, proven, {kind: _most(types) for kind, types in kinds.items()})


def _kind(plan: Plan) -> str:
    return plan.name.rpartition(".")[2]


def _most(types: Sequence[torch.dtype | None]) -> torch.dtype | None:
    return Counter(types).most_common(1)[0][0] if types else None


def _of_sums(
    plan: Plan, known: Evidence, main: torch.dtype | None, votes: _Votes
) -> torch.dtype | None:
    """Returns the type that the sums show, or None where they show none.

    Norms lie near 1, where the sum of any three float16 numbers is one again; so a vector is
    believed to be of another 16-bit type only if most vectors are.
    """
    if not known.counts.tested:
        return main
    best = _best(known.counts, main)
    if best is None:
        return torch.float32 if known.wide and votes.proven else None
    matrix = len(plan.shape) > 1
    shown = known.changed >= FEW if matrix else best is votes.vectors.get(_kind(plan))
    if best is main or shown:
        return best
    return main if main and known.counts.fit(main) else None


def _best(counts: Counts, main: torch.dtype | None) -> torch.dtype | None:
    """Returns the 16-bit type that most values fit, the main one of equals; None for neither."""
    order = sorted(CANDIDATES, key=lambda dtype: dtype is not main)
    best = max(order, key=counts.share)
    return best if counts.fit(best) else None
