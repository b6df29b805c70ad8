"""CUDA kernel: the solver's inner loops in Triton; a program keeps its tile of rows in registers.

This kernel has never run on a GPU. The tests run it in Triton's interpreter, which executes the
same functions on CPU tensors if TRITON_INTERPRET=1 was set before the import of triton (otherwise
Triton refuses such tensors), and compile it for real devices. So the semantics are tested, but
neither the compiled code nor its speed.

Compiled functions have no type annotations: Triton infers the types, and no checker may wrap them.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float32, UInt8
from torch import Tensor

from camelpress.quantize.kernels import reference_kernel
from camelpress.quantize.kernels.kernel import LAZY_BATCH_COLUMNS, MIN_SCALE

SEARCH_ELEMENTS = 2**22  # elements of one temporary of `search_group`, 16 MB
LAUNCH_OPTIONS = {"num_warps": 8, "enable_fp_fusion": True}  # 8 warps: 4 have too few registers
_ROWS = tl.constexpr(16)  # rows of one program
_SMALLEST = tl.constexpr(MIN_SCALE)
_ROUNDING_OFFSET = tl.constexpr(1.5 * 2**23)  # fp32 has no fractions here: adding it rounds
_CODE_BOUND = tl.constexpr(1024.0)  # bound beyond any code, exact below the offset


def search_group(
    columns: Float32[Tensor, "cols rows"],
    importance: Float32[Tensor, " cols"],
    *,
    bits: int,
    sym: bool,
) -> tuple[Float32[Tensor, " rows"], Float32[Tensor, " rows"]]:
    """Implements `Kernel.search_group` in torch, a chunk of rows at a time."""
    grids = [
        reference_kernel.search_group(part, importance, bits=bits, sym=sym)
        for part in columns.split(max(1, SEARCH_ELEMENTS // len(columns)), dim=1)
    ]
    scales, zeros = (torch.cat(parts) for parts in zip(*grids, strict=True))
    return scales, zeros


def round_columns(
    columns: Float32[Tensor, "cols rows"],
    upper: Float32[Tensor, "cols cols"],
    scales: Float32[Tensor, " rows"],
    zeros: Float32[Tensor, " rows"],
    *,
    top: int,
) -> tuple[UInt8[Tensor, "cols rows"], Float32[Tensor, "cols rows"]]:
    """Implements `Kernel.round_columns`; long groups go to the reference kernel."""
    if len(columns) > LAZY_BATCH_COLUMNS:
        return reference_kernel.round_columns(columns, upper, scales, zeros, top=top)
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
            **LAUNCH_OPTIONS,
        )
    return codes, errors


@triton.jit
@no_type_check
def _round_half_even(value):
    """Rounds to the nearest whole number, ties to even, within the bound beyond any code."""
    return (
        tl.minimum(tl.maximum(value, -_CODE_BOUND), _CODE_BOUND)
        + _ROUNDING_OFFSET
        - _ROUNDING_OFFSET
    )


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
        code = _round_half_even(tl.div_rn(value, scale)) + zero
        code = tl.minimum(tl.maximum(code, 0.0), top)
        diagonal = tl.load(upper + column * cols + column)
        error = tl.div_rn(value - (code - zero) * scale, diagonal + tl.zeros_like(value))
        offset = column * rows + row
        tl.store(codes + offset, code.to(tl.int32).to(tl.uint8), mask=row < rows)
        tl.store(errors + offset, error, mask=row < rows)
        later = (col > column) & (col < cols)
        share = tl.load(upper + column * cols + col, mask=later, other=0.0)
        tile -= share[:, None] * error[None, :]
