"""What stands in the tensors beside the codes of a packed layer."""

from __future__ import annotations

from typing import NamedTuple

import torch

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.portable_config import dtype_name
from camelpress.core.packing.bitpacking import unpack_words

MIN_SCALE = 1e-5  # below, a scale has few digits in fp16; auto-round clips there


class LayerValues(NamedTuple):
    """Of one layer."""

    name: str
    dtype: str  # of the scales
    scales: int
    negative: int
    tiny_scales: int
    non_finite: int  # not finite
    has_act_order: bool  # its columns are not in the order of their groups
    has_off_centre_zeros: bool  # a zero point elsewhere than in the middle
    has_wrapped_zeros: bool  # a zero point of 0, which v1 stores as its largest number


def read_layer_values(
    checkpoint: Checkpoint, name: str, *, bits: int, columns: int, zero_offset: int
) -> LayerValues:
    """Look at scales, zero points and group indices of a layer.

    Args:
        checkpoint: holds them, in shapes that fit.
        name: of the layer.
        bits: of a code.
        columns: that share a scale.
        zero_offset: what a stored zero point lacks, 1 in v1 and 0 in v2.
    """
    scales, zeros, order = (
        checkpoint.read(f"{name}.{part}") for part in ("scales", "qzeros", "g_idx")
    )
    size = scales.float().abs()
    zero = (unpack_words(zeros.T.contiguous(), bits).to(torch.int64) + zero_offset) % 2**bits
    return LayerValues(
        name,
        dtype_name(scales.dtype),
        scales.numel(),
        int((scales < 0).sum()),
        int(((size > 0) & (size < MIN_SCALE)).sum()),
        int((~scales.isfinite()).sum()),
        not torch.equal(order.long(), torch.arange(len(order)) // columns),
        not bool((zero == 2 ** (bits - 1)).all()),
        zero_offset == 1 and not bool(zero.all()),
    )
