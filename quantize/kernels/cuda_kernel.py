"""CUDA kernel: the solver's inner loops in Triton; a program keeps its tile of rows in registers.

This kernel has never run on a GPU. The tests run it in Triton's interpreter, which executes the
same functions on CPU tensors if TRITON_INTERPRET=1 was set before the import of triton (otherwise
Triton refuses such tensors), and compile it for real devices. So the semantics are tested, but
neither the compiled code nor its speed.

Every launch takes all rows, and nothing returns to the host. Compiled functions have no type
annotations: Triton infers the types, and no checker may wrap them.
"""

from __future__ import annotations

from functools import cache
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float32, UInt8
from torch import Tensor

from camelpress.quantize.kernels.kernel import (
    LAZY_BATCH_COLUMNS,
    MIN_SCALE,
    SHRINK_FACTORS,
    GroupResult,
)

# Compiled for sm_90 by Triton 3.9, a thread takes 48 registers to search a grid and 64 to round; it
# spills none to memory.
LAUNCH_OPTIONS = {"num_warps": 8, "enable_fp_fusion": True}
_ROWS = tl.constexpr(16)  # rows of one program
_CANDIDATES = tl.constexpr(len(SHRINK_FACTORS))
_SMALLEST = tl.constexpr(MIN_SCALE)
_ROUNDING_OFFSET = tl.constexpr(1.5 * 2**23)  # fp32 has no fractions here: adding it rounds


def round_group(
    columns: Float32[Tensor, "cols rows"],
    upper: Float32[Tensor, "cols cols"],
    importance: Float32[Tensor, " cols"],
    *,
    bits: int,
    sym: bool,
) -> GroupResult:
    """Implements `Kernel.round_group`."""
    result = GroupResult.allocate(columns)
    outputs = (result.codes, result.errors, result.scales, result.zeros)
    inputs = (upper, *upper.stride(), importance)
    width = triton.next_power_of_2(len(columns))
    _launch(_round_group, columns, *inputs, *outputs, bits=bits, sym=sym, width=width)
    return result


def search_group(
    columns: Float32[Tensor, "cols rows"],
    importance: Float32[Tensor, " cols"],
    *,
    bits: int,
    sym: bool,
) -> tuple[Float32[Tensor, " rows"], Float32[Tensor, " rows"]]:
    """Implements `Kernel.search_group`."""
    scales, zeros = torch.empty_like(columns[0]), torch.empty_like(columns[0])
    width = min(triton.next_power_of_2(len(columns)), LAZY_BATCH_COLUMNS)
    _launch(_search_group, columns, importance, scales, zeros, bits=bits, sym=sym, width=width)
    return scales, zeros


def round_columns(
    columns: Float32[Tensor, "cols rows"],
    upper: Float32[Tensor, "cols cols"],
    scales: Float32[Tensor, " rows"],
    zeros: Float32[Tensor, " rows"],
    *,
    top: int,
) -> tuple[UInt8[Tensor, "cols rows"], Float32[Tensor, "cols rows"]]:
    """Implements `Kernel.round_columns`."""
    cols, rows = columns.shape
    codes, errors = torch.empty_like(columns, dtype=torch.uint8), torch.empty_like(columns)
    tensors = (columns, upper, *upper.stride(), scales, zeros, codes, errors)
    with torch.cuda.device_of(columns):
        _round_columns[(triton.cdiv(rows, _ROWS.value),)](
            *tensors, rows, cols, float(top), triton.next_power_of_2(cols), **LAUNCH_OPTIONS
        )
    return codes, errors


def _launch(
    function: Any,
    columns: Float32[Tensor, "cols rows"],
    *arguments: Any,
    bits: int,
    sym: bool,
    width: int,
) -> None:
    """Launches a search for all rows, with tiles of `width` columns."""
    cols, rows = columns.shape
    with torch.cuda.device_of(columns):
        function[(triton.cdiv(rows, _ROWS.value),)](
            columns,
            *arguments,
            _shrink_table(columns.device, bits),
            rows,
            cols,
            2.0**bits - 1,
            2 / (2**bits - 1),
            sym,
            width,
            **LAUNCH_OPTIONS,
        )


@cache
def _shrink_table(device: torch.device, bits: int) -> Float32[Tensor, "2 candidates"]:
    """Returns the shrink factors, and the same divided by the largest code."""
    steps = [shrink / (2**bits - 1) for shrink in SHRINK_FACTORS]
    return torch.tensor([SHRINK_FACTORS, steps], dtype=torch.float32, device=device)


@triton.jit
@no_type_check
def _load_tile(columns, start, row, rows, cols, width: tl.constexpr):
    col = start + tl.arange(0, width)
    inside = (col[:, None] < cols) & (row[None, :] < rows)
    return tl.load(columns + col[:, None] * rows + row[None, :], mask=inside, other=0.0)


@triton.jit
@no_type_check
def _round_between(value, low, high):
    """Rounds to the nearest whole number between two others, ties to even."""
    return tl.minimum(tl.maximum(value, low), high) + _ROUNDING_OFFSET - _ROUNDING_OFFSET


@triton.jit
@no_type_check
def _candidate(number, span, low, shrinks, top, sym: tl.constexpr):
    """Returns the scale and zero point of one candidate grid."""
    if sym:
        scale = tl.maximum(span * tl.load(shrinks + number // 2), _SMALLEST)
        scale = scale.to(tl.float16).to(tl.float32)
        scale = tl.where(number % 2 == 0, scale, -scale)
        zero = tl.zeros_like(span) + (top + 1.0) * 0.5
    else:
        scale = tl.maximum(span * tl.load(shrinks + _CANDIDATES + number // 3), _SMALLEST)
        scale = scale.to(tl.float16).to(tl.float32)
        middle = tl.div_rn(-low * tl.load(shrinks + number // 3), scale)
        zero = _round_between(middle, 0.0, top + 1.0)
        zero = tl.where(number % 3 == 1, zero - 1.0, tl.where(number % 3 == 2, zero + 1.0, zero))
        zero = tl.minimum(tl.maximum(zero, 1.0), top)
    return scale, zero


@triton.jit
@no_type_check
def _search(
    columns, importance, shrinks, row, rows, cols, top, step, sym: tl.constexpr, width: tl.constexpr
):
    """Returns the best scale and zero point of each row; the first of equal candidates wins."""
    low = tl.zeros_like(row).to(tl.float32)
    high = low
    for start in range(0, cols, width):
        tile = _load_tile(columns, start, row, rows, cols, width)
        low, high = tl.minimum(low, tl.min(tile, axis=0)), tl.maximum(high, tl.max(tile, axis=0))
    if sym:
        span = tl.maximum(high, -low) * step
        count = 2 * _CANDIDATES
    else:
        low = tl.minimum(low, tl.div_rn(-high, tl.zeros_like(high) + (top - 1.0)))
        span = high - low
        count = 3 * _CANDIDATES
    best_loss = tl.zeros_like(span) + float("inf")
    best_scale = best_loss
    best_zero = tl.zeros_like(span)
    for number in range(0, count):
        scale, zero = _candidate(number, span, low, shrinks, top, sym)
        inverse = tl.div_rn(tl.zeros_like(scale) + 1.0, scale)[None, :]
        loss = tl.zeros_like(scale)
        for start in range(0, cols, width):
            tile = _load_tile(columns, start, row, rows, cols, width)
            col = start + tl.arange(0, width)
            weight = tl.load(importance + col, mask=col < cols, other=0.0)[:, None]
            steps = _round_between(tile * inverse, -zero[None, :], top - zero[None, :])
            error = steps * scale[None, :] - tile
            loss += tl.sum(weight * error * error, axis=0)
        better = loss < best_loss
        best_loss = tl.where(better, loss, best_loss)
        best_scale = tl.where(better, scale, best_scale)
        best_zero = tl.where(better, zero, best_zero)
    return best_scale, best_zero


@triton.jit
@no_type_check
def _round_tile(
    tile, upper, down, right, scale, zero, codes, errors, row, rows, cols, top, width: tl.constexpr
):
    """Rounds a tile column by column and stores codes and errors."""
    col = tl.arange(0, width)
    for column in range(0, cols):
        value = tl.sum(tl.where(col[:, None] == column, tile, 0.0), axis=0)
        steps = _round_between(tl.div_rn(value, scale), -zero, top - zero)
        diagonal = tl.load(upper + column * (down + right))
        error = tl.div_rn(value - steps * scale, diagonal + tl.zeros_like(value))
        offset = column * rows + row
        tl.store(codes + offset, (steps + zero).to(tl.int32).to(tl.uint8), mask=row < rows)
        tl.store(errors + offset, error, mask=row < rows)
        later = (col > column) & (col < cols)
        share = tl.load(upper + column * down + col * right, mask=later, other=0.0)
        tile -= share[:, None] * error[None, :]


@triton.jit
@no_type_check
def _search_group(
    columns,
    importance,
    scales,
    zeros,
    shrinks,
    rows,
    cols,
    top,
    step,
    sym: tl.constexpr,
    width: tl.constexpr,
):
    row = tl.program_id(0) * _ROWS + tl.arange(0, _ROWS)
    scale, zero = _search(columns, importance, shrinks, row, rows, cols, top, step, sym, width)
    tl.store(scales + row, scale, mask=row < rows)
    tl.store(zeros + row, zero, mask=row < rows)


@triton.jit
@no_type_check
def _round_columns(
    columns, upper, down, right, scales, zeros, codes, errors, rows, cols, top, width: tl.constexpr
):
    row = tl.program_id(0) * _ROWS + tl.arange(0, _ROWS)
    tile = _load_tile(columns, 0, row, rows, cols, width)
    scale = tl.load(scales + row, mask=row < rows, other=1.0)
    zero = tl.load(zeros + row, mask=row < rows, other=0.0)
    _round_tile(tile, upper, down, right, scale, zero, codes, errors, row, rows, cols, top, width)


@triton.jit
@no_type_check
def _round_group(
    columns, upper, down, right, importance, codes, errors, scales, zeros, shrinks, rows, cols,
    top, step, sym: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * _ROWS + tl.arange(0, _ROWS)
    scale, zero = _search(columns, importance, shrinks, row, rows, cols, top, step, sym, width)
    tl.store(scales + row, scale, mask=row < rows)
    tl.store(zeros + row, zero, mask=row < rows)
    tile = _load_tile(columns, 0, row, rows, cols, width)
    _round_tile(tile, upper, down, right, scale, zero, codes, errors, row, rows, cols, top, width)
