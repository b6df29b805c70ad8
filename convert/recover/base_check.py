"""Is this the right base? Judged before anything is written, from what the weights tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from camelpress.convert.inputs.base_sample import (
    HALF_DTYPES,
    MIN_FIT_SHARE,
    FitCounts,
    TensorSample,
)
from camelpress.convert.recover.output_dtypes import OutputDtypes
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.portable_config import dtype_name
from camelpress.core.errors import NumericsProblem

DAMAGED_MIN_SHARE = 0.99  # with the right base, but something in it or in the diff is damaged
MIN_BFLOAT16_SHARE = (
    0.9  # of the values of a bfloat16 base fit that type; of a float16 one, one in eight
)
MAX_NAMES = 3  # tensors that a message lists


def _likely_dtype(counts: FitCounts) -> torch.dtype:
    """The type that a tuned model of these sums had, damaged as they may be.

    On a float16 base, half of the sums are bfloat16 numbers only if all should be. Nearly all are
    float16 numbers then, too; and where nothing but zeros is left of a diff, every sum is.
    """
    share = counts.fit_share(torch.bfloat16)
    bfloat16 = share >= MIN_FIT_SHARE or (share > 1 / 2 and not _is_bfloat16(counts))
    return torch.bfloat16 if bfloat16 else torch.float16


def _is_bfloat16(counts: FitCounts) -> bool:
    return counts.base_bfloat16 > MIN_BFLOAT16_SHARE * counts.base


def require_differences(
    diff: Checkpoint, evidence: Mapping[str, TensorSample], types: OutputDtypes
) -> None:
    """Sees that a diff is one, or that each tensor is plainly either whole or a difference.

    Raises:
        NumericsProblem: it is a model, whose tensors are like the base's; or some tensors are
            whole and others are neither whole nor a difference from this base.
    """
    whole = [name for name, known in evidence.items() if known.holds_weights]
    others = [name for name in evidence if name not in whole]
    if whole and not others:
        raise NumericsProblem(
            f"{diff.folder} holds weights, not differences: its tensors are like the base's",
            next_step="use it as it is, nothing has to be recovered; or give the diff",
        )
    unclear = [name for name in others if name in types.unexplained or not _differs(evidence[name])]
    if len(whole) > len(others) and unclear:
        raise NumericsProblem(
            f"{diff.folder} holds weights, not differences, in {len(whole)} tensors, such as "
            f"{whole[0]!r}; but {_format_names(unclear)} is neither like the base's nor a "
            "difference "
            "from it",
            next_step="undo by the script of its authors what was done there; the file is not the "
            "model as it is, and no rule of recover fits",
        )
    _require_no_large_ones(diff, evidence, types, others)


def _differs(known: TensorSample) -> bool:
    """Tells whether a tensor can show that it is a difference, and does not hold zeros only."""
    return not known.digest or known.changed_sums > 0


def _require_no_large_ones(
    diff: Checkpoint,
    evidence: Mapping[str, TensorSample],
    types: OutputDtypes,
    others: Sequence[str],
) -> None:
    large = [name for name in others if name in types.unexplained and _may_be_whole(evidence[name])]
    if not large or len(types.unexplained) > len(large) or len(large) > len(others) / 2:
        return
    rules = " ".join(f"--rule {name}=absolute" for name in large)
    raise NumericsProblem(
        f"{_format_names(large)} in {diff.folder} is no difference from this base, though the "
        f"{len(others) - len(large)} other tensors are; its values are large enough for weights",
        next_step=f"give {rules} if it was published whole, else download both again",
    )


def _may_be_whole(known: TensorSample) -> bool:
    return known.has_large_values and any(
        known.own_counts.fits_dtype(dtype) for dtype in HALF_DTYPES
    )


def _format_names(names: Sequence[str]) -> str:
    rest = len(names) - MAX_NAMES
    return ", ".join(map(repr, names[:MAX_NAMES])) + (f" and {rest} more" if rest > 0 else "")


def require_same_base_digest(
    base: Checkpoint, diff: Checkpoint, stated: str | None, *, proven: bool
) -> None:
    """Sees that the base is the one from which the diff says it was made.

    Raises:
        NumericsProblem: it has other values.
    """
    if stated is not None and not proven:
        raise NumericsProblem(
            f"{base.folder} is not the base of {diff.folder}: its weights are not those of which "
            "the diff states the SHA-256",
            next_step="give the exact base of this diff, unrounded",
        )


def require_matching_base(
    base: Checkpoint, diff: Checkpoint, counts: FitCounts, main: torch.dtype | None = None
) -> None:
    """See that base and diff belong together, in every part that was tested.

    Args:
        base: the raw model.
        diff: its difference from the tuned one.
        counts: of all tensors, each counted by its own type as one of the main type.
        main: the main type, if it is known.
    Raises:
        NumericsProblem: names a base that was rounded to bfloat16, one that is unrelated, or a
            tensor that is neither although it does not fit; or nothing was tested.
    """
    if not counts.tested:
        raise NumericsProblem(
            f"nothing in {diff.folder} can tell whether {base.folder} is its base",
            next_step="give --check off and a --dtype, if you know that it is",
        )
    dtype = main or _likely_dtype(counts)
    share, (least, name) = counts.fit_share(dtype), counts.lowest_shares[dtype]
    if least >= MIN_FIT_SHARE:
        return
    rounded = _is_bfloat16(counts)
    if share >= DAMAGED_MIN_SHARE and not (rounded and dtype is torch.float16):
        raise NumericsProblem(
            f"{name!r} is damaged, in {base.folder} or in {diff.folder}: in one place only "
            f"{least:.1%} of base + diff are {dtype_name(dtype)} numbers",
            next_step="download both again",
        )
    found = f"only {share:.1%} of base + diff are {dtype_name(dtype)} numbers"
    float32 = "--check off --dtype float32 if the tuned model is float32"
    if rounded:
        raise NumericsProblem(
            f"{base.folder} was rounded to bfloat16, which all of its values fit, or is not the "
            f"base of {diff.folder}: {found}",
            next_step=f"take the exact base, LLaMA-1 in its original float16; {float32}",
        )
    raise NumericsProblem(
        f"{base.folder} is not the base of {diff.folder}: {found}",
        next_step=f"give the exact base of this diff; {float32}",
    )
