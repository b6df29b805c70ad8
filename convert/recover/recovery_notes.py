"""Notes of a recovery for whoever watches it: base, rules, types, and values that change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from camelpress.convert.recover.diff_rules import Plan
from camelpress.convert.recover.recovery_plan import Choice, total
from camelpress.convert.settings import Recover
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.portable_config import dtype_name
from camelpress.core.progress import note

LISTED = 3  # tensors of one rule that are noted by name


def note_choice(choice: Choice, diff: Checkpoint, buffers: Sequence[str]) -> None:
    """Notes how the base is taken, the rules that had a choice, and what is left out or lost."""
    if choice.base_dtype:
        note(f"the base is taken as {choice.base_dtype}, as whoever made the diff did")
    _note_rules(choice.plans)
    narrow = [plan.name for plan in choice.plans if plan.rule == "sum" and _is_narrow(diff, plan)]
    if narrow:
        note(
            f"the diff is in 16 bits, as {narrow[0]!r}: a weight whose change was rounded in it "
            "comes back with that rounding"
        )
    if buffers:
        note(f"{len(buffers)} buffers that follow from the config are left out, as {buffers[0]!r}")


def note_types(choice: Choice) -> None:
    """Notes the type of most tensors, the sums that show it, and the tensors of other types."""
    main = choice.types.main
    if main is None:
        note("the sums fit no 16-bit type: the output is float32")
        return
    names: dict[torch.dtype, list[str]] = {}
    for name, dtype in choice.types.tensors.items():
        names.setdefault(dtype, []).append(name)
    sums = choice.sums()
    counts = total(sums[name] for name in names.pop(main, []) if name in sums)
    if counts.tested:
        note(
            f"{counts.share(main):.2%} of {counts.tested} sampled sums are {dtype_name(main)} "
            "numbers: that is the dtype of the output"
        )
    for dtype, listed in names.items():
        note(f"{len(listed)} tensors are {dtype_name(dtype)}, such as {listed[0]!r}")


def note_rounding(
    settings: Recover, diff: Checkpoint, entries: Mapping[str, Mapping[str, Any]]
) -> int:
    """Counts the values that the types of the output round, and notes those of float32 diffs.

    Sums of a diff in 16 bits are rounded as a rule, because the diff was.
    """
    counts = {name: facts.get("rounded", 0) for name, facts in entries.items()}
    wide = [
        name for name, count in counts.items() if count and diff.info(name).dtype is torch.float32
    ]
    if wide:
        by = "the output" if settings.dtype == "auto" else f"--dtype {settings.dtype}"
        values = sum(counts[name] for name in wide)
        note(f"{by} rounds {values:,} values in {len(wide)} tensors, such as {wide[0]!r}")
    return sum(counts.values())


def _is_narrow(diff: Checkpoint, plan: Plan) -> bool:
    return diff.info(plan.name).dtype is not torch.float32


def _note_rules(chosen: Sequence[Plan]) -> None:
    names: dict[str, list[str]] = {}
    for plan in chosen:
        if plan.reason:
            names.setdefault(f"{plan.rule}, {plan.reason}", []).append(plan.name)
    for rule, listed in names.items():
        if len(listed) > LISTED:
            note(f"{len(listed)} tensors, such as {listed[0]!r}: {rule}")
        else:
            for name in listed:
                note(f"{name}: {rule}")
