"""One tensor of base + diff = tuned, forwards and backwards, in fp32 and in pieces.

A piece is small enough to stay in a processor's cache between its reading, adding, hashing and
writing, and so is the memory of a whole recovery.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from camelpress.convert.inputs.base_sample import (
    MAX_ULPS,
    ROUNDOFF,
    FitCounts,
    count_fits,
    mean_row,
)
from camelpress.convert.recover.diff_rules import TensorPlan, widen_base_rows
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.portable_config import dtype_name
from camelpress.core.errors import NumericsProblem

CHUNK_VALUES = 2**18  # values


@dataclass
class TensorStats:
    """What is known of a tensor once all of its pieces went by."""

    largest_change: float = 0.0
    counts: FitCounts | None = None
    rounded: int | None = None
    zero_signs: int | None = None
    inexact: int | None = None
    largest_error: float | None = None

    def facts(self) -> dict[str, Any]:
        """As plain data, without what was not looked at."""
        found = asdict(self) | {"counts": self.counts and self.counts.to_json()}
        return {key: value for key, value in found.items() if value is not None}


@dataclass(frozen=True)
class DiffOperands:
    """The two checkpoints and what extends the base.

    Args:
        base: the raw model.
        other: the diff, or the tuned model.
        means: the mean row of each base tensor that a rule needs.
    """

    base: Checkpoint
    tuned_or_diff: Checkpoint
    mean_rows: dict[str, Float32[Tensor, " width"]]

    @classmethod
    def of(cls, base: Checkpoint, other: Checkpoint, plans: Sequence[TensorPlan]) -> DiffOperands:
        """With the means that are needed, one whole matrix in memory at a time."""
        needed = {plan.pair.base_name for plan in plans if plan.uses_mean_row}
        means = {name: mean_row(base, name) for name in needed if name is not None}
        return cls(base, other, means)


def add_diff(
    plan: TensorPlan, operands: DiffOperands, dtype: torch.dtype, *, check: bool, told: TensorStats
) -> Iterator[Float[Tensor, "..."]]:
    """The tuned tensor, piece by piece.

    Args:
        plan: its rule.
        operands: base and diff.
        dtype: of what is yielded.
        check: test every sum, not a sample only.
        told: takes what is found.
    Raises:
        NumericsProblem: a sum is not finite, or does not fit `dtype`.
    """
    stored = operands.tuned_or_diff.tensor_info(plan.name).dtype
    for start, stop in _row_ranges(plan):
        difference = _rows(operands.tuned_or_diff, plan.name, start, stop)
        _update_largest_change(told, difference)
        base = _base_operand(plan, operands, start, stop)
        sums = difference if base is None else base + difference
        if start >= plan.shared_rows:
            sums = _extra_rows(plan, operands, sums)
        elif check and base is not None:
            found = count_fits(base, difference, sums, stored, plan.name)
            told.counts = (told.counts or FitCounts()) + found
        values = _to_output_dtype(plan, operands, sums, dtype)
        if dtype is not torch.float32:
            told.rounded = (told.rounded or 0) + _count_rounded(values, sums, difference)
        yield values


def subtract_base(
    plan: TensorPlan,
    operands: DiffOperands,
    dtype: torch.dtype,
    tuned: torch.dtype,
    *,
    told: TensorStats,
) -> Iterator[Float[Tensor, "..."]]:
    """The diff, piece by piece, having seen what `added` brings back.

    Args:
        plan: its rule.
        operands: base and tuned model.
        dtype: of what is yielded.
        tuned: of what has to come back.
        told: takes what is found; `inexact` counts the values that would not come back.
    Raises:
        NumericsProblem: a difference is not finite in `dtype`, or a float32 diff would lose
            something.
    """
    for start, stop in _row_ranges(plan):
        right = _rows(operands.tuned_or_diff, plan.name, start, stop)
        base = _base_operand(plan, operands, start, stop)
        exact = right if base is None else right - base
        _require_range(plan, operands, exact, dtype)
        difference = exact.to(dtype)
        wide = difference.to(torch.float32)
        sums = wide if base is None else base + wide
        back = _to_output_dtype(plan, operands, sums, tuned).to(torch.float32)
        _update_largest_change(told, wide)
        told.inexact = (told.inexact or 0) + int((back != right).sum())
        told.zero_signs = (told.zero_signs or 0) + _lost_signs(back, right)
        error = float((back - right).abs().max())
        told.largest_error = max(told.largest_error or 0.0, error)
        if told.inexact and dtype is torch.float32:
            raise NumericsProblem(
                f"{told.inexact} values of {plan.name!r} in {operands.tuned_or_diff.folder} "
                "would not "
                f"come back from a float32 diff as {dtype_name(tuned)}: they need a wider type, "
                "or are 65,536 times smaller than the base's",
                next_step="publish the tuned weights themselves",
            )
        yield difference


def _to_output_dtype(
    plan: TensorPlan, operands: DiffOperands, sums: Float32[Tensor, "..."], dtype: torch.dtype
) -> Float[Tensor, "..."]:
    """Returns the tuned values."""
    _require_range(plan, operands, sums, dtype)
    return sums.to(dtype)


def _count_rounded(
    values: Float[Tensor, "..."], sums: Float32[Tensor, "..."], difference: Float32[Tensor, "..."]
) -> int:
    """Counts the values that lose more than float32 itself lost in difference, mean and sum."""
    back = values.to(torch.float32)
    if torch.equal(back, sums):
        return 0
    error = (back - sums).abs()
    return int((error > MAX_ULPS * ROUNDOFF * (difference.abs() + sums.abs())).sum())


def _lost_signs(back: Float32[Tensor, "..."], right: Float32[Tensor, "..."]) -> int:
    """Counts the zeros that come back with the other sign."""
    return int(((back == 0) & (right == 0) & (back.signbit() != right.signbit())).sum())


def _row_ranges(plan: TensorPlan) -> Iterator[tuple[int, int]]:
    """Runs of rows, none of which holds both rows of the base and added ones."""
    width = torch.Size(plan.pair.shape[1:]).numel()
    if not width:
        return
    step = max(1, CHUNK_VALUES // width)
    common = min(plan.shared_rows, plan.rows)
    cuts = sorted({*range(0, common, step), *range(common, plan.rows, step), plan.rows})
    yield from pairwise(cuts)


def _rows(checkpoint: Checkpoint, name: str, start: int, stop: int) -> Float32[Tensor, "..."]:
    return checkpoint.read_rows(name, start, stop).to(torch.float32)


def _base_operand(
    plan: TensorPlan, operands: DiffOperands, start: int, stop: int
) -> Float32[Tensor, "..."] | None:
    """What is added to the difference; None for nothing."""
    name = plan.pair.base_name
    if name is None or plan.rule == "absolute":
        return None
    if start < plan.shared_rows:
        return widen_base_rows(plan, _rows(operands.base, name, start, stop))
    if plan.rule == "mean":
        return operands.mean_rows[name].expand(stop - start, -1)
    return None


def _extra_rows(
    plan: TensorPlan, operands: DiffOperands, published: Float32[Tensor, "rows width"]
) -> Float32[Tensor, "rows width"]:
    """What becomes of the rows that the base lacks."""
    if plan.extra_rows == "mean" and plan.pair.base_name is not None:
        return operands.mean_rows[plan.pair.base_name].expand_as(published)
    return torch.zeros_like(published) if plan.extra_rows == "zero" else published


def _update_largest_change(told: TensorStats, difference: Float32[Tensor, "..."]) -> None:
    low, high = difference.aminmax()
    told.largest_change = max(told.largest_change, float(high), -float(low))


def _require_range(
    plan: TensorPlan, operands: DiffOperands, values: Float32[Tensor, "..."], dtype: torch.dtype
) -> None:
    low, high = values.aminmax()
    limit = torch.finfo(dtype).max
    if not (float(low) >= -limit and float(high) <= limit):  # NaN is neither
        raise NumericsProblem(
            f"{plan.name!r} of {operands.base.folder} and {operands.tuned_or_diff.folder} "
            "gives values "
            f"that are not finite in {dtype_name(dtype)}",
            next_step="download both again, or choose a dtype that holds them",
        )
