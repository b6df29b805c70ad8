"""Statistics of a packed layer's scales, zero points and group indices."""

from __future__ import annotations

from typing import NamedTuple

import torch

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.portable_config import dtype_name
from camelpress.core.packing.bitpacking import unpack_words

MIN_SCALE = 1e-5  # smallest scale with enough fp16 digits; auto-round clips at it


class LayerValues(NamedTuple):
    """Statistics of one packed layer's scales, zero points and group indices."""

    name: str
    dtype: str  # dtype of the scales
    scales: int  # number of scales
    negative: int  # number of scales below 0
    tiny_scales: int  # number of scales between 0 and `MIN_SCALE` in magnitude
    non_finite: int  # number of scales that are NaN or infinite
    has_act_order: bool  # true if the columns are not in the order of their groups
    has_off_centre_zeros: bool  # true if a zero point is not in the middle of the codes
    has_wrapped_zeros: bool  # true if a zero point is 0, stored by v1 as its largest number


def read_layer_values(
    checkpoint: Checkpoint, name: str, *, bits: int, columns: int, zero_offset: int
) -> LayerValues:
    """Reads scales, zero points and group indices of a layer and computes their statistics.

    Args:
        checkpoint: checkpoint with tensors of matching shapes.
        name: name of the layer.
        bits: bits of a code.
        columns: number of columns that share a scale.
        zero_offset: amount to add to a stored zero point, 1 in v1 and 0 in v2.
    """
    scales, zeros, order = (
        checkpoint.read(f"{name}.{part}") for part in ("scales", "qzeros", "g_idx")
    )
    magnitudes = scales.float().abs()
    zero_points = (unpack_words(zeros.T.contiguous(), bits).to(torch.int64) + zero_offset) % 2**bits
    return LayerValues(
        name,
        dtype_name(scales.dtype),
        scales.numel(),
        int((scales < 0).sum()),
        int(((magnitudes > 0) & (magnitudes < MIN_SCALE)).sum()),
        int((~scales.isfinite()).sum()),
        not torch.equal(order.long(), torch.arange(len(order)) // columns),
        not bool((zero_points == 2 ** (bits - 1)).all()),
        zero_offset == 1 and not bool(zero_points.all()),
    )
