"""Plans a recovery: rule and dtype of every tensor, and the base that explains the diff.

A script may have loaded the base in 16 bits before subtracting it. If no dtype explains the sums
with the base as stored, the plan tries the base rounded to each 16-bit dtype. It uses a rounded
base only if that explains every tensor.
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
    """Decisions of a recovery: base, rule of each tensor, and dtypes.

    Args:
        base: base as the author of the diff held it.
        base_dtype: name of the dtype the base is rounded to, or None.
        tensor_plans: plans of the output tensors.
        samples: tensor name to sample.
        dtypes: dtypes of the output.
        metadata: header of the diff.
    """

    base: Checkpoint
    base_dtype: str | None
    tensor_plans: Sequence[TensorPlan]
    samples: Mapping[str, TensorSample]
    dtypes: OutputDtypes
    metadata: DiffMetadata

    def sum_counts_by_tensor(self) -> dict[str, FitCounts]:
        """Returns the sample counts of all tensors computed as sums."""
        return {
            plan.name: self.samples[plan.name].counts
            for plan in self.tensor_plans
            if plan.rule != "absolute" and plan.name in self.samples
        }

    @property
    def sampled_counts(self) -> FitCounts:
        """Counts of all sampled sums."""
        return sum_counts(self.sum_counts_by_tensor().values())

    def sum_as_main_dtype(self, counts: Mapping[str, FitCounts]) -> FitCounts:
        """Adds up counts of tensors, each counted by its own dtype."""
        return sum_counts(
            self.dtypes.count_as_main_dtype(name, fit_counts) for name, fit_counts in counts.items()
        )

    def require_differences(self, diff: Checkpoint) -> None:
        """Checks the tensors of the diff, as `base_check.require_differences` does."""
        base_check.require_differences(diff, self.samples, self.dtypes)

    def require_right_base(
        self, base: Checkpoint, diff: Checkpoint, counts: Mapping[str, FitCounts]
    ) -> None:
        """Checks that base and diff belong together, as `base_check.require_matching_base` does."""
        total = self.sum_as_main_dtype(
            {name: counts[name] for name in self.sum_counts_by_tensor() if name in counts}
        )
        if total.tested or not self.dtypes.base_is_proven:
            base_check.require_matching_base(base, diff, total, self.dtypes.main_dtype)


def plan_recovery(base: Checkpoint, diff: Checkpoint, settings: RecoverSettings) -> RecoveryPlan:
    """Chooses base, rules and dtypes from a sample of every tensor."""
    pairs, metadata = pair_tensors(base, diff, settings.rule), DiffMetadata.read(diff)
    recovery = _plan_on_base(base, None, diff, pairs, settings, metadata)
    if (
        settings.check == "off"
        or metadata.base_digest is not None
        or not recovery.dtypes.unexplained
    ):
        return recovery
    for dtype in HALF_DTYPES:
        rounded = _plan_on_base(RoundedBase(base, dtype), dtype, diff, pairs, settings, metadata)
        if rounded.dtypes.main_dtype is not None and not rounded.dtypes.unexplained:
            return rounded
    return recovery


def sum_counts(counts: Iterable[FitCounts]) -> FitCounts:
    """Adds up fit counts."""
    return reduce(add, counts, FitCounts())


def _plan_on_base(
    base: Checkpoint,
    dtype: torch.dtype | None,
    diff: Checkpoint,
    pairs: Sequence[TensorPair],
    settings: RecoverSettings,
    metadata: DiffMetadata,
) -> RecoveryPlan:
    needs_sums = settings.check != "off" or settings.dtype == "auto"
    samples = sample_tensors(base, diff, [pair for pair in pairs if needs_sums or pair.is_larger])
    if metadata.main_dtype is not None:  # a diff by make-diff never holds a base tensor's weights
        samples = {
            name: replace(sample, holds_weights=False, has_large_values=False)
            for name, sample in samples.items()
        }
    plans = plan_tensors(pairs, samples, settings.rule, settings.extra_rows, metadata.rule)
    dtypes = decide_dtypes(plans, samples, metadata)
    base_dtype = None if dtype is None else dtype_name(dtype)
    return RecoveryPlan(base, base_dtype, plans, samples, dtypes, metadata)
