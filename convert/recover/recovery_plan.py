"""The plan of a recovery: rule and type of every tensor, on the base that explains the diff.

A script may have loaded the base in 16 bits before it subtracted. Where the sums with the base as
it is are explained by no type, the base is tried as such a script held it. It is taken so only if
every tensor is explained then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add

import torch

from camelpress.convert.inputs.base_sample import CANDIDATES, Counts, Evidence, sample
from camelpress.convert.inputs.diff_metadata import DiffRecord
from camelpress.convert.inputs.rounded_base import RoundedBase
from camelpress.convert.inputs.tensor_pairs import Pair, pairs
from camelpress.convert.recover import base_check
from camelpress.convert.recover.diff_rules import Plan, plans
from camelpress.convert.recover.output_dtypes import TensorTypes, tensor_types
from camelpress.convert.settings import Recover
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.portable_config import dtype_name


@dataclass(frozen=True)
class Choice:
    """Holds the decision for each tensor and its reason.

    Args:
        base: the base, as whoever made the diff held it.
        base_dtype: the type that it is rounded to, if it is.
        plans: the tensors of the output.
        evidence: per tensor that was sampled.
        types: of the output.
        record: the statements of the diff.
    """

    base: Checkpoint
    base_dtype: str | None
    plans: Sequence[Plan]
    evidence: Mapping[str, Evidence]
    types: TensorTypes
    record: DiffRecord

    def sums(self) -> dict[str, Counts]:
        """Returns the counts of all tensors that are sums."""
        return {
            plan.name: self.evidence[plan.name].counts
            for plan in self.plans
            if plan.rule != "absolute" and plan.name in self.evidence
        }

    @property
    def counts(self) -> Counts:
        """All sums that were sampled."""
        return total(self.sums().values())

    def judged(self, counts: Mapping[str, Counts]) -> Counts:
        """Adds up counts of tensors, each by its own type."""
        return total(self.types.judged(name, each) for name, each in counts.items())

    def require_differences(self, diff: Checkpoint) -> None:
        """Sees that the diff is one, as `verify.require_differences` does."""
        base_check.require_differences(diff, self.evidence, self.types)

    def require_right_base(
        self, base: Checkpoint, diff: Checkpoint, counts: Mapping[str, Counts]
    ) -> None:
        """Sees that base and diff belong together, as `verify.require_right_base` does."""
        seen = self.judged({name: counts[name] for name in self.sums() if name in counts})
        if seen.tested or not self.types.proven:
            base_check.require_right_base(base, diff, seen, self.types.main)


def choose(base: Checkpoint, diff: Checkpoint, settings: Recover) -> Choice:
    """Chooses base, rules and types by a sample of every tensor."""
    matched, record = pairs(base, diff, settings.rule), DiffRecord.read(diff)
    choice = _on(base, None, diff, matched, settings, record)
    if settings.check == "off" or record.base is not None or not choice.types.unexplained:
        return choice
    for dtype in CANDIDATES:
        other = _on(RoundedBase(base, dtype), dtype, diff, matched, settings, record)
        if other.types.main is not None and not other.types.unexplained:
            return other
    return choice


def total(counts: Iterable[Counts]) -> Counts:
    """Adds up counts."""
    return reduce(add, counts, Counts())


def _on(
    base: Checkpoint,
    dtype: torch.dtype | None,
    diff: Checkpoint,
    matched: Sequence[Pair],
    settings: Recover,
    record: DiffRecord,
) -> Choice:
    tested = settings.check != "off" or settings.dtype == "auto"
    evidence = sample(base, diff, [pair for pair in matched if tested or pair.grown])
    if record.main is not None:  # a diff of ours has no whole tensor that the base has, too
        evidence = {
            name: replace(each, absolute=False, large=False) for name, each in evidence.items()
        }
    chosen = plans(matched, evidence, settings.rule, settings.extra_rows, record.rule)
    types = tensor_types(chosen, evidence, record)
    word = None if dtype is None else dtype_name(dtype)
    return Choice(base, word, chosen, evidence, types, record)
