"""The solver's inner loops for a GPU, in Triton: a program takes some rows, and its tile of them
stays in registers while column after column is rounded.

None of this has ever run on a GPU. The tests run it in Triton's own interpreter, which executes the
same functions on tensors of the CPU if TRITON_INTERPRET=1 was set before triton was imported
(otherwise Triton refuses such tensors), and compile it for real devices. So the meaning is checked;
what the compiler made of it, and its speed, are not.

Compiled functions have no types: Triton finds them, and a checker must not wrap them.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float32, UInt8
from torch import Tensor

from camelpress.quantize import kernel_plain
from camelpress.quantize.kernel import COLUMNS, SMALLEST_SCALE

CHUNK = 2**22  # elements of one temporary of `search`: 16 MB
OPTIONS = {"num_warps": 8, "enable_fp_fusion": True}  # 4 warps have too few registers
_ROWS = tl.constexpr(16)  # of one program
_SMALLEST = tl.constexpr(SMALLEST_SCALE)
_HALF_EVEN = tl.constexpr(1.5 * 2**23)  # fp32 has no fractions up here: adding it rounds
_FAR = tl.constexpr(1024.0)  # beyond any code, and exact below `_HALF_EVEN`


def search(
    columns: Float32[Tensor, "cols rows"],
    importance: Float32[Tensor, " cols"],
    *,
    bits: int,
    sym: bool,
) -> tuple[Float32[Tensor, " rows"], Float32[Tensor, " rows"]]:
    """As `Kernel.search`: in torch, some rows at a time."""
    found = [
        kernel_plain.search(part, importance, bits=bits, sym=sym)
        for part in columns.split(max(1, CHUNK // len(columns)), dim=1)
    ]
    scales, zeros = (torch.cat(each) for each in zip(*found, strict=True))
    return scales, zeros


def round_columns(
    columns: Float32[Tensor, "cols rows"],
    upper: Float32[Tensor, "cols cols"],
    scales: Float32[Tensor, " rows"],
    zeros: Float32[Tensor, " rows"],
    *,
    top: int,
) -> tuple[UInt8[Tensor, "cols rows"], Float32[Tensor, "cols rows"]]:
    """As `Kernel.round_columns`, for at most `COLUMNS` of them; more go to `kernel_plain`."""
    if len(columns) > COLUMNS:
        return kernel_plain.round_columns(columns, upper, scales, zeros, top=top)
    cols, rows = columns.shape
    codes = torch.empty(cols, rows, dtype=torch.uint8, device=columns.device)
    errors = torch.empty(cols, rows, dtype=torch.float32, device=columns.device)
    with torch.cuda.device_of(columns):
        _round_columns[(triton.cdiv(rows, _ROWS.value),)](
            columns.contiguous(),
            upper.contiguous(),
            scales.contiguous(),
            zeros.contiguous(),
            codes,
            errors,
            rows,
            cols,
            float(top),
            triton.next_power_of_2(cols),
            **OPTIONS,
        )
    return codes, errors


def refine_columns(
    gradient: Float32[Tensor, "rows cols"],
    hessian: Float32[Tensor, "cols cols"],
    codes: Float32[Tensor, "rows cols"],
    error: Float32[Tensor, "rows cols"],
    scales: Float32[Tensor, "rows groups"],
    zeros: Float32[Tensor, "rows groups"],
    *,
    top: int,
) -> None:
    """As `Kernel.refine_columns`.

    All tensors are contiguous. A group wider than `COLUMNS`, as that of a whole row, does not fit
    the registers of a program and goes to `kernel_plain`, which is slow there.
    """
    rows, cols = codes.shape
    if cols > COLUMNS:
        kernel_plain.refine_columns(gradient, hessian, codes, error, scales, zeros, top=top)
        return
    with torch.cuda.device_of(codes):
        _refine_columns[(triton.cdiv(rows, _ROWS.value),)](
            gradient,
            hessian,
            codes,
            error,
            scales,
            zeros,
            rows,
            cols,
            scales.shape[1],
            float(top),
            triton.next_power_of_2(cols),
            **OPTIONS,
        )


@triton.jit
@no_type_check
def _nearest(value):
    """The nearest whole number, ties to even; what is further out than any code stays so."""
    return tl.minimum(tl.maximum(value, -_FAR), _FAR) + _HALF_EVEN - _HALF_EVEN


@triton.jit
@no_type_check
def _round_columns(
    columns, upper, scales, zeros, codes, errors, rows, cols, top, width: tl.constexpr
):
    row = tl.program_id(0) * _ROWS + tl.arange(0, _ROWS)
    col = tl.arange(0, width)
    inside = (col[:, None] < cols) & (row[None, :] < rows)
    tile = tl.load(columns + col[:, None] * rows + row[None, :], mask=inside, other=0.0)
    scale = tl.load(scales + row, mask=row < rows, other=1.0)
    zero = tl.load(zeros + row, mask=row < rows, other=0.0)
    for column in range(0, cols):
        value = tl.sum(tl.where(col[:, None] == column, tile, 0.0), axis=0)
        code = _nearest(tl.div_rn(value, scale)) + zero
        code = tl.minimum(tl.maximum(code, 0.0), top)
        diagonal = tl.load(upper + column * cols + column)
        error = tl.div_rn(value - (code - zero) * scale, diagonal + tl.zeros_like(value))
        place = column * rows + row
        tl.store(codes + place, code.to(tl.int32).to(tl.uint8), mask=row < rows)
        tl.store(errors + place, error, mask=row < rows)
        later = (col > column) & (col < cols)
        share = tl.load(upper + column * cols + col, mask=later, other=0.0)
        tile -= share[:, None] * error[None, :]


@triton.jit
@no_type_check
def _refine_columns(
    gradient, hessian, codes, error, scales, zeros, rows, cols, groups, top, width: tl.constexpr
):
    row = tl.program_id(0) * _ROWS + tl.arange(0, _ROWS)
    col = tl.arange(0, width)
    inside = (row[:, None] < rows) & (col[None, :] < cols)
    place = row[:, None] * cols + col[None, :]
    slopes = tl.load(gradient + place, mask=inside, other=0.0)
    code = tl.load(codes + place, mask=inside, other=0.0)
    missed = tl.load(error + place, mask=inside, other=0.0)
    size = cols // groups
    for group in range(0, groups):
        first = group * size
        old = tl.load(scales + row * groups + group, mask=row < rows, other=1.0)
        zero = tl.load(zeros + row * groups + group, mask=row < rows, other=0.0)
        ours = (col[None, :] >= first) & (col[None, :] < first + size)
        steps = tl.where(ours, code - zero[:, None], 0.0)
        across = tl.zeros_like(steps)  # steps times Hessian
        for column in range(first, first + size):
            step = tl.sum(tl.where(col[None, :] == column, steps, 0.0), axis=1)
            line = tl.load(hessian + column * cols + col, mask=col < cols, other=0.0)
            across += step[:, None] * line[None, :]
        slope = tl.sum(steps * slopes, axis=1)
        curvature = tl.sum(steps * across, axis=1)
        curved = curvature > 0
        scale = old - tl.div_rn(slope, tl.where(curved, curvature, 1.0))
        size_of = tl.maximum(tl.abs(scale), _SMALLEST).to(tl.float16).to(tl.float32)
        scale = tl.where(curved, tl.where(scale < 0, -size_of, size_of), old)
        moved = scale - old
        tl.store(scales + row * groups + group, scale, mask=row < rows)
        missed += moved[:, None] * steps
        slopes += moved[:, None] * across
        for column in range(first, first + size):
            here = col[None, :] == column
            line = tl.load(hessian + column * cols + col, mask=col < cols, other=0.0)
            diagonal = tl.load(hessian + column * cols + column)
            before = tl.sum(tl.where(here, code, 0.0), axis=1)
            slope = tl.sum(tl.where(here, slopes, 0.0), axis=1)
            step = tl.div_rn(tl.div_rn(slope, diagonal + tl.zeros_like(slope)), scale)
            after = tl.minimum(tl.maximum(_nearest(before - step), 0.0), top)
            change = (after - before) * scale
            code = tl.where(here, after[:, None], code)
            missed = tl.where(here, missed + change[:, None], missed)
            slopes += change[:, None] * line[None, :]
    tl.store(gradient + place, slopes, mask=inside)
    tl.store(codes + place, code, mask=inside)
    tl.store(error + place, missed, mask=inside)
