"""Adds a diff to one tensor of the base, or subtracts the base from it, in fp32 and in chunks.

A chunk stays in the processor's cache from reading through adding and hashing to writing, so a
whole recovery needs little memory.
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

CHUNK_VALUES = 2**18  # values per chunk


@dataclass
class TensorStats:
    """Statistics of one tensor, accumulated over its chunks; None: not measured."""

    largest_change: float = 0.0
    counts: FitCounts | None = None
    rounded: int | None = None
    zero_signs: int | None = None
    inexact: int | None = None
    largest_error: float | None = None

    def facts(self) -> dict[str, Any]:
        """Returns the statistics as plain data, without those not measured."""
        values = asdict(self) | {"counts": self.counts and self.counts.to_json()}
        return {key: value for key, value in values.items() if value is not None}


@dataclass(frozen=True)
class DiffOperands:
    """Both checkpoints of an addition or subtraction, and the mean rows of the base.

    Args:
        base: raw model.
        tuned_or_diff: diff, or tuned model.
        mean_rows: name of a base tensor to its mean row, for the tensors with added rows.
    """

    base: Checkpoint
    tuned_or_diff: Checkpoint
    mean_rows: dict[str, Float32[Tensor, " width"]]

    @classmethod
    def of(
        cls, base: Checkpoint, tuned_or_diff: Checkpoint, plans: Sequence[TensorPlan]
    ) -> DiffOperands:
        """Computes the mean rows that the plans use, with one whole matrix in memory at a time."""
        names = {plan.pair.base_name for plan in plans if plan.uses_mean_row}
        mean_rows = {name: mean_row(base, name) for name in names if name is not None}
        return cls(base, tuned_or_diff, mean_rows)


def add_diff(
    plan: TensorPlan, operands: DiffOperands, dtype: torch.dtype, *, check: bool, stats: TensorStats
) -> Iterator[Float[Tensor, "..."]]:
    """Yields the tuned tensor in chunks of rows.

    Args:
        plan: name and rule of the tensor.
        operands: base and diff.
        dtype: dtype of the yielded values.
        check: tests every sum, not only a sample.
        stats: receives the statistics of the tensor.
    Raises:
        NumericsProblem: a sum is not finite, or overflows `dtype`.
    """
    diff_dtype = operands.tuned_or_diff.tensor_info(plan.name).dtype
    for start, stop in _row_ranges(plan):
        difference = _rows(operands.tuned_or_diff, plan.name, start, stop)
        _update_largest_change(stats, difference)
        base = _base_operand(plan, operands, start, stop)
        sums = difference if base is None else base + difference
        if start >= plan.shared_rows:
            sums = _extra_rows(plan, operands, sums)
        elif check and base is not None:
            counts = count_fits(base, difference, sums, diff_dtype, plan.name)
            stats.counts = (stats.counts or FitCounts()) + counts
        values = _to_output_dtype(plan, operands, sums, dtype)
        if dtype is not torch.float32:
            stats.rounded = (stats.rounded or 0) + _count_rounded(values, sums, difference)
        yield values


def subtract_base(
    plan: TensorPlan,
    operands: DiffOperands,
    dtype: torch.dtype,
    tuned_dtype: torch.dtype,
    *,
    stats: TensorStats,
) -> Iterator[Float[Tensor, "..."]]:
    """Yields the diff in chunks of rows, after checking the sums that `add_diff` would restore.

    Args:
        plan: name and rule of the tensor.
        operands: base and tuned model.
        dtype: dtype of the yielded values.
        tuned_dtype: dtype of the restored values.
        stats: receives the statistics of the tensor; `inexact` counts the values that the diff
            does not restore exactly.
    Raises:
        NumericsProblem: a difference is not finite in `dtype`, or a float32 diff restores a
            value inexactly.
    """
    for start, stop in _row_ranges(plan):
        tuned_values = _rows(operands.tuned_or_diff, plan.name, start, stop)
        base = _base_operand(plan, operands, start, stop)
        exact = tuned_values if base is None else tuned_values - base
        _require_range(plan, operands, exact, dtype)
        difference = exact.to(dtype)
        difference32 = difference.to(torch.float32)
        sums = difference32 if base is None else base + difference32
        restored = _to_output_dtype(plan, operands, sums, tuned_dtype).to(torch.float32)
        _update_largest_change(stats, difference32)
        stats.inexact = (stats.inexact or 0) + int((restored != tuned_values).sum())
        stats.zero_signs = (stats.zero_signs or 0) + _lost_signs(restored, tuned_values)
        error = float((restored - tuned_values).abs().max())
        stats.largest_error = max(stats.largest_error or 0.0, error)
        if stats.inexact and dtype is torch.float32:
            raise NumericsProblem(
                f"{stats.inexact} values of {plan.name!r} in {operands.tuned_or_diff.folder} "
                f"would not come back from a float32 diff as {dtype_name(tuned_dtype)}: they need "
                "a wider type, or are 65,536 times smaller than the base's",
                next_step="publish the tuned weights themselves",
            )
        yield difference


def _to_output_dtype(
    plan: TensorPlan, operands: DiffOperands, sums: Float32[Tensor, "..."], dtype: torch.dtype
) -> Float[Tensor, "..."]:
    """Converts sums to the output dtype after checking their range."""
    _require_range(plan, operands, sums, dtype)
    return sums.to(dtype)


def _count_rounded(
    values: Float[Tensor, "..."], sums: Float32[Tensor, "..."], difference: Float32[Tensor, "..."]
) -> int:
    """Counts values with a rounding error beyond that of float32 in difference, mean and sum."""
    restored = values.to(torch.float32)
    if torch.equal(restored, sums):
        return 0
    error = (restored - sums).abs()
    return int((error > MAX_ULPS * ROUNDOFF * (difference.abs() + sums.abs())).sum())


def _lost_signs(restored: Float32[Tensor, "..."], tuned_values: Float32[Tensor, "..."]) -> int:
    """Counts zeros restored with the opposite sign."""
    return int(
        (
            (restored == 0) & (tuned_values == 0) & (restored.signbit() != tuned_values.signbit())
        ).sum()
    )


def _row_ranges(plan: TensorPlan) -> Iterator[tuple[int, int]]:
    """Yields row ranges of about `CHUNK_VALUES` values, split between base rows and added rows."""
    width = torch.Size(plan.pair.shape[1:]).numel()
    if not width:
        return
    step = max(1, CHUNK_VALUES // width)
    shared_rows = min(plan.shared_rows, plan.rows)
    cuts = sorted({*range(0, shared_rows, step), *range(shared_rows, plan.rows, step), plan.rows})
    yield from pairwise(cuts)


def _rows(checkpoint: Checkpoint, name: str, start: int, stop: int) -> Float32[Tensor, "..."]:
    return checkpoint.read_rows(name, start, stop).to(torch.float32)


def _base_operand(
    plan: TensorPlan, operands: DiffOperands, start: int, stop: int
) -> Float32[Tensor, "..."] | None:
    """Returns the base values to add to the difference, or None if the diff holds the sum."""
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
    """Returns the values of the added rows by the setting `extra_rows`."""
    if plan.extra_rows == "mean" and plan.pair.base_name is not None:
        return operands.mean_rows[plan.pair.base_name].expand_as(published)
    return torch.zeros_like(published) if plan.extra_rows == "zero" else published


def _update_largest_change(stats: TensorStats, difference: Float32[Tensor, "..."]) -> None:
    low, high = difference.aminmax()
    stats.largest_change = max(stats.largest_change, float(high), -float(low))


def _require_range(
    plan: TensorPlan, operands: DiffOperands, values: Float32[Tensor, "..."], dtype: torch.dtype
) -> None:
    low, high = values.aminmax()
    limit = torch.finfo(dtype).max
    if not (float(low) >= -limit and float(high) <= limit):  # false for NaN
        raise NumericsProblem(
            f"{plan.name!r} of {operands.base.folder} and {operands.tuned_or_diff.folder} "
            f"gives values that are not finite in {dtype_name(dtype)}",
            next_step="download both again, or choose a dtype that holds them",
        )
