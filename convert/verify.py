"""Is this the right base? The weights themselves tell, without a published checksum.

A tuned model was saved in 16 bits. If base and diff belong together, their fp32 sums are numbers
of that 16-bit type, all of them; with a wrong base hardly one in ten is bfloat16, and seven in
ten are float16 (which holds most small numbers of any kind). The share that fits is evidence for
the base and for the type to save in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float32
from torch import Tensor

from camelpress.convert.pairs import Pair
from camelpress.core.checkpoint import Checkpoint
from camelpress.core.config import dtype_name
from camelpress.core.errors import NumericsProblem

CANDIDATES = (torch.bfloat16, torch.float16)
NEEDED = {torch.float32: 0.999}  # of an fp32 diff; 16-bit diffs are themselves rounded
NEEDED_16_BIT = 0.9
SAMPLED_TENSORS = 32
SAMPLED_VALUES = 65_536


@dataclass(frozen=True)
class Evidence:
    """How much of a sample of base + diff fits each 16-bit type."""

    shares: dict[torch.dtype, float]
    base_fits_bfloat16: float
    values: int

    @property
    def best(self) -> torch.dtype:
        """The type that most values fit; bfloat16 where both are equal."""
        return max(CANDIDATES, key=lambda dtype: self.shares[dtype])


def share_fitting(values: Float32[Tensor, "..."], dtype: torch.dtype) -> float:
    """The share of values that `dtype` represents exactly, 0 to 1."""
    return float((values.to(dtype).to(torch.float32) == values).float().mean())


def sample(base: Checkpoint, diff: Checkpoint, matched: Sequence[Pair]) -> Evidence:
    """Add up the first rows of matrices spread over the whole model, and see what they fit."""
    matrices = [pair for pair in matched if len(pair.shape) == 2] or list(matched)
    step = max(1, len(matrices) // SAMPLED_TENSORS)
    bases, sums = [], []
    for pair in matrices[::step]:
        rows = min(base.info(pair.base_name).shape[0], _rows(pair.shape))
        base_rows = base.rows(pair.base_name, 0, rows).to(torch.float32)
        bases.append(base_rows.flatten())
        sums.append((base_rows + diff.rows(pair.name, 0, rows).to(torch.float32)).flatten())
    total = torch.cat(sums)
    return Evidence(
        shares={dtype: share_fitting(total, dtype) for dtype in CANDIDATES},
        base_fits_bfloat16=share_fitting(torch.cat(bases), torch.bfloat16),
        values=total.numel(),
    )


def require_right_base(base: Checkpoint, diff: Checkpoint, evidence: Evidence) -> None:
    """Stop before anything is written where base and diff do not belong together.

    Raises:
        NumericsProblem: names a base that was rounded to bfloat16, or one that is unrelated.
    """
    diff_dtype = next(iter(diff.tensors.values())).dtype
    share = evidence.shares[evidence.best]
    if share >= NEEDED.get(diff_dtype, NEEDED_16_BIT):
        return
    found = f"only {share:.1%} of base + diff are {dtype_name(evidence.best)} numbers"
    float32 = "--check off --dtype float32 if the tuned model is float32"
    if evidence.base_fits_bfloat16 > NEEDED_16_BIT:
        raise NumericsProblem(
            f"{base.folder} was rounded to bfloat16, which all of its values fit, or is not the "
            f"base of {diff.folder}: {found}",
            next_step=f"take the exact base, LLaMA-1 in its original float16; {float32}",
        )
    raise NumericsProblem(
        f"{base.folder} is not the base of {diff.folder}: {found}",
        next_step=f"give the exact base of this diff; {float32}",
    )


def _rows(shape: tuple[int, ...]) -> int:
    return max(1, SAMPLED_VALUES // max(1, torch.Size(shape[1:]).numel()))
