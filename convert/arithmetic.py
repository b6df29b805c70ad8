"""One tensor of base + diff = tuned, forwards and backwards, in fp32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from camelpress.convert.pairs import Pair, extended
from camelpress.core.checkpoint import Checkpoint
from camelpress.core.config import dtype_name
from camelpress.core.errors import NumericsProblem
from camelpress.core.writer import CheckpointWriter, Slot


def slots(matched: list[Pair], dtype: torch.dtype) -> dict[str, Slot]:
    """What is going to be written."""
    return {pair.name: Slot(dtype, pair.shape) for pair in matched}


def add(
    pair: Pair, base: Checkpoint, diff: Checkpoint, writer: CheckpointWriter, dtype: torch.dtype
) -> dict[str, Any]:
    """Write one tuned tensor, and tell how it came about.

    Raises:
        NumericsProblem: a sum is not finite.
    """
    left, difference = _read(pair, base, diff)
    tuned = (left + difference).to(dtype)
    if not bool(tuned.isfinite().all()):
        raise NumericsProblem(
            f"{pair.name!r} of {base.folder} + {diff.folder} has "
            f"{int((~tuned.isfinite()).sum())} values that are not finite",
            next_step="download both again, and choose a dtype that holds the sums",
        )
    writer.put(pair.name, tuned)
    return _told(pair, difference)


def subtract(
    pair: Pair, base: Checkpoint, tuned: Checkpoint, writer: CheckpointWriter, dtype: torch.dtype
) -> dict[str, Any]:
    """Write one tensor of a diff, having seen that `add` brings back the tuned one as `dtype`.

    Raises:
        NumericsProblem: it does not, or a value is not finite.
    """
    left, right = _read(pair, base, tuned)
    difference = right - left
    back = (left + difference).to(dtype).to(torch.float32)
    lost = int(((back != right) | ~difference.isfinite()).sum())
    if lost:
        raise NumericsProblem(
            f"{lost} values of {pair.name!r} in {tuned.folder} would not come back from a float32 "
            f"diff as {dtype_name(dtype)}: they are not finite, need a wider type, "
            "or are 65,536 times smaller than the base's",
            next_step="publish the tuned weights themselves",
        )
    writer.put(pair.name, difference)
    return _told(pair, difference)


def _read(pair: Pair, base: Checkpoint, other: Checkpoint) -> tuple[Tensor, Tensor]:
    left = base.read(pair.base_name).to(torch.float32)
    return extended(left, pair.extra_rows), other.read(pair.name).to(torch.float32)


def _told(pair: Pair, difference: Tensor) -> dict[str, Any]:
    return {
        "name": pair.name,
        "rule": pair.rule,
        "largest_change": float(difference.abs().max()),
    }
