"""Is this the right base? Judged before anything is written, from what the weights tell."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from camelpress.convert.evidence import Counts, Evidence
from camelpress.core.checkpoint import Checkpoint
from camelpress.core.config import dtype_name
from camelpress.core.errors import NumericsProblem

NEEDED = 0.999  # of the sums that can tell, in every part that was tested
MOSTLY = 0.99  # with the right base, but something in it or in the diff is damaged
BFLOAT16 = 0.9  # of the values of a bfloat16 base fit that type; of a float16 one, one in eight


def tuned_dtype(counts: Counts) -> torch.dtype | None:
    """The 16-bit type of the tuned model; the narrower where both fit, none where neither does."""
    dtype = _likely(counts)
    return dtype if counts.share(dtype) >= NEEDED else None


def _likely(counts: Counts) -> torch.dtype:
    """The type that a tuned model of these sums had, damaged as they may be.

    On a float16 base, half of the sums are bfloat16 numbers only if all should be. Nearly all are
    float16 numbers then, too; and where nothing but zeros is left of a diff, every sum is.
    """
    share = counts.share(torch.bfloat16)
    bfloat16 = share >= NEEDED or (share > 1 / 2 and not _is_bfloat16(counts))
    return torch.bfloat16 if bfloat16 else torch.float16


def _is_bfloat16(counts: Counts) -> bool:
    return counts.base_bfloat16 > BFLOAT16 * counts.base


def require_differences(diff: Checkpoint, evidence: Iterable[Evidence]) -> None:
    """See that a diff is one.

    Raises:
        NumericsProblem: it is a model: its tensors look like the base's.
    """
    absolute = [each.absolute for each in evidence]
    if absolute and sum(absolute) > len(absolute) / 2:
        raise NumericsProblem(
            f"{diff.folder} holds weights, not differences: its tensors are like the base's",
            next_step="use it as it is, nothing has to be recovered; or give the diff",
        )


def require_right_base(base: Checkpoint, diff: Checkpoint, counts: Counts) -> None:
    """See that base and diff belong together, in every part that was tested.

    Raises:
        NumericsProblem: names a base that was rounded to bfloat16, one that is unrelated, or a
            tensor that is neither although it does not fit; or nothing was tested.
    """
    if not counts.tested:
        raise NumericsProblem(
            f"nothing in {diff.folder} can tell whether {base.folder} is its base",
            next_step="give --check off and a --dtype, if you know that it is",
        )
    dtype = _likely(counts)
    share, (least, name) = counts.share(dtype), counts.least[dtype]
    if least >= NEEDED:
        return
    rounded = _is_bfloat16(counts)
    if share >= MOSTLY and not (rounded and dtype is torch.float16):
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
