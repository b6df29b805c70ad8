"""Sizes of token batches and token shards by device, the only place that holds them.

Sums depend on the sizes, so a resume key records them. Large products fill a GPU, and every shard
costs a sum of Hessians; on a CPU a batch stays in the cache.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class BatchSizes(NamedTuple):
    """Sizes in tokens."""

    batch: int  # tokens per forward pass
    shard: int  # tokens per shard of calibration, and per file of a store
    scored_shard: int  # tokens per shard of a comparison; every thread has one in memory


SIZES = {
    "cpu": BatchSizes(batch=1024, shard=4096, scored_shard=512),
    "cuda": BatchSizes(batch=16_384, shard=32_768, scored_shard=16_384),
}


def batch_sizes(device: torch.device) -> BatchSizes:
    """Returns the sizes for a device."""
    return SIZES["cpu" if device.type == "cpu" else "cuda"]
