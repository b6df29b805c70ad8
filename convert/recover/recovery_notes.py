"""Notes of a recovery for whoever watches it: base, rules, types, and values that change."""

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

MAX_NOTE_NAMES = 3  # tensors of one rule that are noted by name


def note_plan(choice: RecoveryPlan, diff: Checkpoint, buffers: Sequence[str]) -> None:
    """Notes how the base is taken, the rules that had a choice, and what is left out or lost."""
    if choice.base_dtype:
        note(f"the base is taken as {choice.base_dtype}, as whoever made the diff did")
    _note_rules(choice.tensor_plans)
    narrow = [
        plan.name
        for plan in choice.tensor_plans
        if plan.rule == "sum" and _is_16bit_diff(diff, plan)
    ]
    if narrow:
        note(
            f"the diff is in 16 bits, as {narrow[0]!r}: a weight whose change was rounded in it "
            "comes back with that rounding"
        )
    if buffers:
        note(f"{len(buffers)} buffers that follow from the config are left out, as {buffers[0]!r}")


def note_dtypes(choice: RecoveryPlan) -> None:
    """Notes the type of most tensors, the sums that show it, and the tensors of other types."""
    main = choice.dtypes.main_dtype
    if main is None:
        note("the sums fit no 16-bit type: the output is float32")
        return
    names: dict[torch.dtype, list[str]] = {}
    for name, dtype in choice.dtypes.tensors.items():
        names.setdefault(dtype, []).append(name)
    sums = choice.sum_counts_by_tensor()
    counts = sum_counts(sums[name] for name in names.pop(main, []) if name in sums)
    if counts.tested:
        note(
            f"{counts.fit_share(main):.2%} of {counts.tested} sampled sums are {dtype_name(main)} "
            "numbers: that is the dtype of the output"
        )
    for dtype, listed in names.items():
        note(f"{len(listed)} tensors are {dtype_name(dtype)}, such as {listed[0]!r}")


def count_and_note_rounding(
    settings: RecoverSettings, diff: Checkpoint, entries: Mapping[str, Mapping[str, Any]]
) -> int:
    """Counts the values that the types of the output round, and notes those of float32 diffs.

    Sums of a diff in 16 bits are rounded as a rule, because the diff was.
    """
    counts = {name: facts.get("rounded", 0) for name, facts in entries.items()}
    wide = [
        name
        for name, count in counts.items()
        if count and diff.tensor_info(name).dtype is torch.float32
    ]
    if wide:
        by = "the output" if settings.dtype == "auto" else f"--dtype {settings.dtype}"
        values = sum(counts[name] for name in wide)
        note(f"{by} rounds {values:,} values in {len(wide)} tensors, such as {wide[0]!r}")
    return sum(counts.values())


def _is_16bit_diff(diff: Checkpoint, plan: TensorPlan) -> bool:
    return diff.tensor_info(plan.name).dtype is not torch.float32


def _note_rules(chosen: Sequence[TensorPlan]) -> None:
    names: dict[str, list[str]] = {}
    for plan in chosen:
        if plan.reason:
            names.setdefault(f"{plan.rule}, {plan.reason}", []).append(plan.name)
    for rule, listed in names.items():
        if len(listed) > MAX_NOTE_NAMES:
            note(f"{len(listed)} tensors, such as {listed[0]!r}: {rule}")
        else:
            for name in listed:
                note(f"{name}: {rule}")
