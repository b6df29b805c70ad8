"""Is this the right base? Judged before anything is written, from what the weights tell."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from camelpress.convert.evidence import CANDIDATES, Counts, Evidence
from camelpress.core.checkpoint import Checkpoint
from camelpress.core.config import dtype_name
from camelpress.core.errors import NumericsProblem

NEEDED = 0.999  # of the sums that can tell
ROUNDED = 0.9  # of the base's values are bfloat16 numbers; of a float16 model one in eight


def tuned_dtype(counts: Counts) -> torch.dtype | None:
    """The 16-bit type of the tuned model; the narrower where both fit, none where neither does."""
    for dtype in CANDIDATES:
        if counts.share(dtype) >= NEEDED:
            return dtype
    return None


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
    """See that base and diff belong together.

    Raises:
        NumericsProblem: names a base that was rounded to bfloat16, or one that is unrelated.
    """
    if tuned_dtype(counts) is not None:
        return
    best = max(CANDIDATES, key=counts.share)
    found = f"only {counts.share(best):.1%} of base + diff are {dtype_name(best)} numbers"
    float32 = "--check off --dtype float32 if the tuned model is float32"
    if counts.base_bfloat16 > ROUNDED * counts.base:
        raise NumericsProblem(
            f"{base.folder} was rounded to bfloat16, which all of its values fit, or is not the "
            f"base of {diff.folder}: {found}",
            next_step=f"take the exact base, LLaMA-1 in its original float16; {float32}",
        )
    raise NumericsProblem(
        f"{base.folder} is not the base of {diff.folder}: {found}",
        next_step=f"give the exact base of this diff; {float32}",
    )
