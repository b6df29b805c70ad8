"""The weights of base, tuned model and diff: each tensor is drawn anew from its name."""

from __future__ import annotations

import zlib

import torch
from jaxtyping import BFloat16, Float16, Float32
from torch import Tensor

STEP = 1e-3  # standard deviation of the tuning, that of the matrices being 0.02


def base(name: str, shape: tuple[int, ...]) -> Float16[Tensor, "..."]:
    """A tensor of the raw model."""
    mean, deviation = (1.0, 0.1) if len(shape) == 1 else (0.0, 0.02)
    return (mean + deviation * _noise(f"base {name}", shape)).to(torch.float16)


def tuned(
    name: str, raw: Float16[Tensor, "..."], rows: int
) -> tuple[BFloat16[Tensor, "..."], Float32[Tensor, "..."]]:
    """A tensor of the tuned model, and its diff against the raw one.

    Args:
        name: of the tensor.
        raw: what `base` gave.
        rows: of the tuned tensor; where `raw` has fewer, the diff of the others is against the
            mean of its rows.
    Returns:
        Two tensors for which raw + diff, summed in fp32, is tuned. What is so near zero that
        fp32 would lose it is zero.
    """
    start = raw.float()
    if rows > len(raw):
        start = torch.cat([start, start.mean(0, keepdim=True).expand(rows - len(raw), -1)])
    end = (start + STEP * _noise(f"tuned {name}", tuple(start.shape))).to(torch.bfloat16)
    end[start + (end.float() - start) != end.float()] = 0
    return end, end.float() - start


def _noise(seed: str, shape: tuple[int, ...]) -> Float32[Tensor, "..."]:
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(seed.encode())))
