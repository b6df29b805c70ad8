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

from camelpress.convert.inputs.base_sample import (
    HALF_DTYPES,
    FitCounts,
    TensorSample,
    sample_tensors,
)
from camelpress.convert.inputs.diff_metadata import DiffMetadata
from camelpress.convert.inputs.rounded_base import RoundedBase
from camelpress.convert.inputs.tensor_pairs import TensorPair, pair_tensors
from camelpress.convert.recover import base_check
from camelpress.convert.recover.diff_rules import TensorPlan, plan_tensors
from camelpress.convert.recover.output_dtypes import OutputDtypes, decide_dtypes
from camelpress.convert.settings import RecoverSettings
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.portable_config import dtype_name


@dataclass(frozen=True)
class RecoveryPlan:
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
    tensor_plans: Sequence[TensorPlan]
    samples: Mapping[str, TensorSample]
    dtypes: OutputDtypes
    metadata: DiffMetadata

    def sum_counts_by_tensor(self) -> dict[str, FitCounts]:
        """Returns the counts of all tensors that are sums."""
        return {
            plan.name: self.samples[plan.name].counts
            for plan in self.tensor_plans
            if plan.rule != "absolute" and plan.name in self.samples
        }

    @property
    def sampled_counts(self) -> FitCounts:
        """All sums that were sampled."""
        return sum_counts(self.sum_counts_by_tensor().values())

    def sum_as_main_dtype(self, counts: Mapping[str, FitCounts]) -> FitCounts:
        """Adds up counts of tensors, each by its own type."""
        return sum_counts(
            self.dtypes.count_as_main_dtype(name, each) for name, each in counts.items()
        )

    def require_differences(self, diff: Checkpoint) -> None:
        """Sees that the diff is one, as `verify.require_differences` does."""
        base_check.require_differences(diff, self.samples, self.dtypes)

    def require_right_base(
        self, base: Checkpoint, diff: Checkpoint, counts: Mapping[str, FitCounts]
    ) -> None:
        """Sees that base and diff belong together, as `verify.require_right_base` does."""
        seen = self.sum_as_main_dtype(
            {name: counts[name] for name in self.sum_counts_by_tensor() if name in counts}
        )
        if seen.tested or not self.dtypes.base_is_proven:
            base_check.require_matching_base(base, diff, seen, self.dtypes.main_dtype)


def plan_recovery(base: Checkpoint, diff: Checkpoint, settings: RecoverSettings) -> RecoveryPlan:
    """Chooses base, rules and types by a sample of every tensor."""
    matched, record = pair_tensors(base, diff, settings.rule), DiffMetadata.read(diff)
    choice = _plan_on_base(base, None, diff, matched, settings, record)
    if settings.check == "off" or record.base_digest is not None or not choice.dtypes.unexplained:
        return choice
    for dtype in HALF_DTYPES:
        other = _plan_on_base(RoundedBase(base, dtype), dtype, diff, matched, settings, record)
        if other.dtypes.main_dtype is not None and not other.dtypes.unexplained:
            return other
    return choice


def sum_counts(counts: Iterable[FitCounts]) -> FitCounts:
    """Adds up counts."""
    return reduce(add, counts, FitCounts())


def _plan_on_base(
    base: Checkpoint,
    dtype: torch.dtype | None,
    diff: Checkpoint,
    matched: Sequence[TensorPair],
    settings: RecoverSettings,
    record: DiffMetadata,
) -> RecoveryPlan:
    tested = settings.check != "off" or settings.dtype == "auto"
    evidence = sample_tensors(base, diff, [pair for pair in matched if tested or pair.is_larger])
    if record.main_dtype is not None:  # a diff of ours has no whole tensor that the base has, too
        evidence = {
            name: replace(each, holds_weights=False, has_large_values=False)
            for name, each in evidence.items()
        }
    chosen = plan_tensors(matched, evidence, settings.rule, settings.extra_rows, record.rule)
    types = decide_dtypes(chosen, evidence, record)
    word = None if dtype is None else dtype_name(dtype)
    return RecoveryPlan(base, word, chosen, evidence, types, record)
