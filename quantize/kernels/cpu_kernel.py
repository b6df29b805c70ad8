"""CPU kernel: the solver's inner loops in numba, parallel over rows and vectorized along them.

Compiled functions have no type annotations: numba infers the types, and no checker may wrap them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from camelpress.quantize.kernels.kernel import MIN_SCALE, SHRINK_FACTORS, GroupResult
from camelpress.quantize.kernels.numba_cache import cached_njit

TASK_ROWS = 64  # rows of one task; 128 columns of them fit in a core's L1 cache
# A cached compilation freezes globals until this file changes, so values of other modules are
# arguments. These three are properties of fp16 and never change.
_SMALLEST, _NORMAL = np.float32(MIN_SCALE), np.float32(torch.finfo(torch.float16).tiny)
_LARGEST = np.float32(torch.finfo(torch.float16).max)
_njit = cached_njit()
_njit_fastmath = cached_njit(fastmath={"reassoc", "contract", "nsz"})


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
    arrays = [tensor.numpy() for tensor in (columns, upper.contiguous(), importance, *outputs)]
    _run_tasks(_round_group, columns.shape[1], *arrays, *_candidates(bits), sym)
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
    arrays = [tensor.numpy() for tensor in (columns, importance, scales, zeros)]
    _run_tasks(_search_group, columns.shape[1], *arrays, *_candidates(bits), sym)
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
    codes, errors = torch.empty_like(columns, dtype=torch.uint8), torch.empty_like(columns)
    tensors = (columns, upper.contiguous(), scales, zeros, codes, errors)
    arrays = [tensor.numpy() for tensor in tensors]
    _run_tasks(_round_columns, columns.shape[1], *arrays, np.float32(top))
    return codes, errors


def _candidates(bits: int) -> tuple[Any, Any]:
    """Returns the shrink factors and the largest code, as numpy values."""
    return np.array(SHRINK_FACTORS), np.float32(2**bits - 1)


def _run_tasks(work: Callable[..., None], rows: int, *arguments: Any) -> None:
    pool = _thread_pool(torch.get_num_threads())
    tasks = [
        pool.submit(work, *arguments, start, min(start + TASK_ROWS, rows))
        for start in range(0, rows, TASK_ROWS)
    ]
    for task in tasks:
        task.result()


@cache
def _thread_pool(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count)


os.register_at_fork(after_in_child=_thread_pool.cache_clear)  # threads do not survive a fork


@_njit
@no_type_check
def _round_to_fp16(scale):
    """Rounds to the nearest nonzero fp16 number, ties to even; overflows to infinity."""
    if abs(scale) < _NORMAL:
        steps = max(np.rint(abs(scale) / _SMALLEST), np.float32(1))
        return -steps * _SMALLEST if scale < 0 else steps * _SMALLEST
    bits = np.float32(scale).view(np.int32)
    rounded = np.int32((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(np.float32)
    return rounded if abs(rounded) <= _LARGEST else rounded * np.float32(np.inf)


# Vectorization needs loops of a fixed length over private arrays: each task copies `TASK_ROWS`
# rows, padded with zeros on a scale of 1.


@_njit_fastmath
@no_type_check
def _copy_tile(columns, start, stop):
    tile = np.zeros((len(columns), TASK_ROWS), dtype=np.float32)
    for column in range(len(columns)):
        for row in range(stop - start):
            tile[column, row] = columns[column, start + row]
    return tile


@_njit_fastmath
@no_type_check
def _search_tile_sym(tile, importance, shrinks, top):
    span, best_scale = np.zeros((2, TASK_ROWS), dtype=np.float32)
    scale, inverse, loss, best_loss = np.empty((4, TASK_ROWS), dtype=np.float32)
    for column in range(len(tile)):
        for row in range(TASK_ROWS):
            span[row] = max(span[row], abs(tile[column, row]))
    best_scale[:], best_loss[:] = np.inf, np.inf
    zero = np.float32((top + 1) // 2)
    for number in range(len(shrinks)):
        shrink = np.float32(shrinks[number])
        for sign in (np.float32(1), np.float32(-1)):
            for row in range(TASK_ROWS):
                scale[row] = sign * _round_to_fp16(span[row] * np.float32(2 / top) * shrink)
                inverse[row] = np.float32(1) / scale[row]
                loss[row] = 0
            for column in range(len(tile)):
                weight = importance[column]
                for row in range(TASK_ROWS):
                    value = tile[column, row]
                    code = min(max(np.rint(value * inverse[row]) + zero, np.float32(0)), top)
                    error = (code - zero) * scale[row] - value
                    loss[row] += weight * error * error
            for row in range(TASK_ROWS):
                if loss[row] < best_loss[row]:
                    best_loss[row], best_scale[row] = loss[row], scale[row]
    return best_scale, np.full(TASK_ROWS, zero, dtype=np.float32)


@_njit_fastmath
@no_type_check
def _search_tile_asym(tile, importance, shrinks, top):
    low, high, best_zero = np.zeros((3, TASK_ROWS), dtype=np.float32)
    best_scale, scale, inverse, zero, loss, best_loss = np.empty((6, TASK_ROWS), dtype=np.float32)
    for column in range(len(tile)):
        for row in range(TASK_ROWS):
            low[row] = min(low[row], tile[column, row])
            high[row] = max(high[row], tile[column, row])
    for row in range(TASK_ROWS):
        low[row] = min(low[row], -high[row] / (top - np.float32(1)))
    best_scale[:], best_loss[:] = np.inf, np.inf
    for number in range(len(shrinks)):
        shrink, step = np.float32(shrinks[number]), np.float32(shrinks[number] / top)
        for offset in (np.float32(0), np.float32(-1), np.float32(1)):
            for row in range(TASK_ROWS):
                scale[row] = _round_to_fp16((high[row] - low[row]) * step)
                inverse[row] = np.float32(1) / scale[row]
                middle = np.rint(-low[row] * shrink / scale[row]) + offset
                zero[row] = min(max(middle, np.float32(1)), top)
                loss[row] = 0
            for column in range(len(tile)):
                weight = importance[column]
                for row in range(TASK_ROWS):
                    value = tile[column, row]
                    code = np.rint(value * inverse[row]) + zero[row]
                    code = min(max(code, np.float32(0)), top)
                    error = (code - zero[row]) * scale[row] - value
                    loss[row] += weight * error * error
            for row in range(TASK_ROWS):
                if loss[row] < best_loss[row]:
                    best_loss[row], best_scale[row], best_zero[row] = (
                        loss[row],
                        scale[row],
                        zero[row],
                    )
    return best_scale, best_zero


@_njit_fastmath
@no_type_check
def _round_tile(tile, upper, scale, zero, codes, errors, top, start, stop):
    code, error = np.empty((2, TASK_ROWS), dtype=np.float32)
    for column in range(len(tile)):
        diagonal = upper[column, column]
        for row in range(TASK_ROWS):
            value = tile[column, row]
            code[row] = min(max(np.rint(value / scale[row]) + zero[row], np.float32(0)), top)
            error[row] = (value - (code[row] - zero[row]) * scale[row]) / diagonal
        for row in range(stop - start):
            codes[column, start + row] = np.uint8(code[row])
            errors[column, start + row] = error[row]
        for later in range(column + 1, len(tile)):
            share = upper[column, later]
            for row in range(TASK_ROWS):
                tile[later, row] -= share * error[row]


@_njit_fastmath
@no_type_check
def _search_tile(tile, importance, shrinks, top, sym):
    if sym:
        return _search_tile_sym(tile, importance, shrinks, top)
    return _search_tile_asym(tile, importance, shrinks, top)


@_njit_fastmath
@no_type_check
def _search_group(columns, importance, scales, zeros, shrinks, top, sym, start, stop):
    tile = _copy_tile(columns, start, stop)
    scale, zero = _search_tile(tile, importance, shrinks, top, sym)
    scales[start:stop], zeros[start:stop] = scale[: stop - start], zero[: stop - start]


@_njit_fastmath
@no_type_check
def _round_columns(columns, upper, scales, zeros, codes, errors, top, start, stop):
    tile = _copy_tile(columns, start, stop)
    scale, zero = np.ones((2, TASK_ROWS), dtype=np.float32)
    scale[: stop - start], zero[: stop - start] = scales[start:stop], zeros[start:stop]
    _round_tile(tile, upper, scale, zero, codes, errors, top, start, stop)


@_njit_fastmath
@no_type_check
def _round_group(
    columns, upper, importance, codes, errors, scales, zeros, shrinks, top, sym, start, stop
):
    tile = _copy_tile(columns, start, stop)
    scale, zero = _search_tile(tile, importance, shrinks, top, sym)
    scales[start:stop], zeros[start:stop] = scale[: stop - start], zero[: stop - start]
    _round_tile(tile, upper, scale, zero, codes, errors, top, start, stop)
