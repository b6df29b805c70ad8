"""Reference kernel in torch: slow, for any device, the oracle of the fast kernels."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from camelpress.quantize.kernels.kernel import MIN_SCALE, SHRINK_FACTORS, GroupResult

GridCandidates = Iterator[tuple[Float32[Tensor, " rows"], Float32[Tensor, " rows"]]]


def round_group(
    columns: Float32[Tensor, "cols rows"],
    upper: Float32[Tensor, "cols cols"],
    importance: Float32[Tensor, " cols"],
    *,
    bits: int,
    sym: bool,
) -> GroupResult:
    """Implements `Kernel.round_group`."""
    scales, zeros = search_group(columns, importance, bits=bits, sym=sym)
    codes, errors = round_columns(columns, upper, scales, zeros, top=2**bits - 1)
    return GroupResult(codes, errors, scales, zeros)


def search_group(
    columns: Float32[Tensor, "cols rows"],
    importance: Float32[Tensor, " cols"],
    *,
    bits: int,
    sym: bool,
) -> tuple[Float32[Tensor, " rows"], Float32[Tensor, " rows"]]:
    """Implements `Kernel.search_group`; the first of equal candidates wins."""
    top = 2**bits - 1
    best_loss = torch.full_like(columns[0], torch.inf)
    best_scale, best_zero = best_loss, torch.zeros_like(best_loss)
    for scale, zero in _grid_candidates(columns, top, sym):
        codes = (columns * scale.reciprocal()).round_().add_(zero).clamp_(0, top)
        error = codes.sub_(zero).mul_(scale).sub_(columns)
        loss = (error.square_() * importance[:, None]).sum(dim=0)
        better = loss < best_loss
        best_loss = torch.where(better, loss, best_loss)
        best_scale = torch.where(better, scale, best_scale)
        best_zero = torch.where(better, zero, best_zero)
    return best_scale, best_zero


def _grid_candidates(columns: Float32[Tensor, "cols rows"], top: int, sym: bool) -> GridCandidates:
    """Yields the scale and zero point of each candidate grid."""
    if sym:
        span = columns.abs().amax(dim=0) * (2 / top)
        middle = torch.full_like(span, (top + 1) // 2)
        for shrink in SHRINK_FACTORS:
            scale = round_scales_to_fp16(span * shrink)
            yield scale, middle
            yield -scale, middle
        return
    high = columns.amax(dim=0).clamp(min=0)
    low = columns.amin(dim=0).minimum(-high / (top - 1))
    for shrink in SHRINK_FACTORS:
        scale = round_scales_to_fp16((high - low) * (shrink / top))
        zero = (-low * shrink / scale).round()
        for offset in (0, -1, 1):
            yield scale, (zero + offset).clamp(1, top)


def round_columns(
    columns: Float32[Tensor, "cols rows"],
    upper: Float32[Tensor, "cols cols"],
    scales: Float32[Tensor, " rows"],
    zeros: Float32[Tensor, " rows"],
    *,
    top: int,
) -> tuple[UInt8[Tensor, "cols rows"], Float32[Tensor, "cols rows"]]:
    """Implements `Kernel.round_columns`."""
    columns = columns.clone()
    codes = torch.empty_like(columns, dtype=torch.uint8)
    errors = torch.empty_like(columns)
    for column in range(len(columns)):
        code = (columns[column] / scales).round_().add_(zeros).clamp_(0, top)
        codes[column] = code
        errors[column] = (columns[column] - code.sub_(zeros).mul_(scales)) / upper[column, column]
        columns[column + 1 :].addr_(upper[column, column + 1 :], errors[column], alpha=-1)
    return codes, errors


def round_scales_to_fp16(scales: Float32[Tensor, " rows"]) -> Float32[Tensor, " rows"]:
    """Rounds scales to the nearest nonzero fp16 numbers of the same sign."""
    sign = torch.where(scales < 0, -1.0, 1.0)
    return sign * scales.abs().clamp(min=MIN_SCALE).to(torch.float16).to(torch.float32)
