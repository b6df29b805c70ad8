"""Prints notes of a recovery: base, rules, dtypes and rounded values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from camelpress.convert.recover.diff_rules import TensorPlan
from camelpress.convert.recover.recovery_plan import RecoveryPlan, sum_counts
from camelpress.convert.settings import RecoverSettings
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.portable_config import dtype_name
from camelpress.core.progress import note

MAX_NOTE_NAMES = 3  # tensors of one rule listed by name


def note_plan(recovery: RecoveryPlan, diff: Checkpoint, buffer_names: Sequence[str]) -> None:
    """Notes the dtype of the base, rules with their reasons, rounding, and skipped buffers."""
    if recovery.base_dtype:
        note(f"the base is rounded to {recovery.base_dtype}, as by the authors of the diff")
    _note_rules(recovery.tensor_plans)
    names_16bit = [
        plan.name
        for plan in recovery.tensor_plans
        if plan.rule == "sum" and _is_16bit_diff(diff, plan)
    ]
    if names_16bit:
        note(
            f"the diff has tensors in 16 bits, such as {names_16bit[0]!r}: weights keep the "
            "rounding of their changes"
        )
    if buffer_names:
        note(
            f"{len(buffer_names)} buffers derived from the config are left out, "
            f"such as {buffer_names[0]!r}"
        )


def note_dtypes(recovery: RecoveryPlan) -> None:
    """Notes the main dtype with the share of fitting sums, and the tensors of other dtypes."""
    main_dtype = recovery.dtypes.main_dtype
    if main_dtype is None:
        note("the sums fit no 16-bit type: the output is float32")
        return
    names: dict[torch.dtype, list[str]] = {}
    for name, dtype in recovery.dtypes.tensors.items():
        names.setdefault(dtype, []).append(name)
    sums = recovery.sum_counts_by_tensor()
    counts = sum_counts(sums[name] for name in names.pop(main_dtype, []) if name in sums)
    if counts.tested:
        note(
            f"{counts.fit_share(main_dtype):.2%} of {counts.tested} sampled sums are "
            f"{dtype_name(main_dtype)} numbers: that is the dtype of the output"
        )
    for dtype, group in names.items():
        note(f"{len(group)} tensors are {dtype_name(dtype)}, such as {group[0]!r}")


def count_and_note_rounding(
    settings: RecoverSettings, diff: Checkpoint, entries: Mapping[str, Mapping[str, Any]]
) -> int:
    """Counts the values rounded by the output dtypes, and notes those of float32 diffs.

    Sums of a 16-bit diff are rounded as a rule, because the diff was.
    """
    counts = {name: facts.get("rounded", 0) for name, facts in entries.items()}
    float32_names = [
        name
        for name, count in counts.items()
        if count and diff.tensor_info(name).dtype is torch.float32
    ]
    if float32_names:
        output = "the output" if settings.dtype == "auto" else f"--dtype {settings.dtype}"
        rounded_values = sum(counts[name] for name in float32_names)
        note(
            f"{output} rounds {rounded_values:,} values in {len(float32_names)} tensors, "
            f"such as {float32_names[0]!r}"
        )
    return sum(counts.values())


def _is_16bit_diff(diff: Checkpoint, plan: TensorPlan) -> bool:
    return diff.tensor_info(plan.name).dtype is not torch.float32


def _note_rules(plans: Sequence[TensorPlan]) -> None:
    names: dict[str, list[str]] = {}
    for plan in plans:
        if plan.reason:
            names.setdefault(f"{plan.rule}, {plan.reason}", []).append(plan.name)
    for rule, group in names.items():
        if len(group) > MAX_NOTE_NAMES:
            note(f"{len(group)} tensors, such as {group[0]!r}: {rule}")
        else:
            for name in group:
                note(f"{name}: {rule}")
