"""What the weights themselves tell of a diff: no checksum of a recovered model was ever published.

A tuned model was saved in 16 bits. If base and diff belong together, their fp32 sums are numbers
of that type, all of them; with a wrong base hardly one in ten is bfloat16, and seven in ten are
float16 (which holds most small numbers of any kind).

A diff in 16 bits was itself rounded, but not everywhere: where the change is small beside the
base's weight, tuned - base needs no more bits than a 16-bit type has. Only there it is evidence.
With |change| <= |weight| / 2 float16 holds it, for then both weights are multiples of one float16
step and the difference is at most 2**11 of them (Sterbenz); with |weight| / 32 bfloat16 does, for
then it is at most 2**7 steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from camelpress.convert.pairs import GROWING, Pair
from camelpress.core.checkpoint import Checkpoint
from camelpress.core.config import dtype_name

CANDIDATES = (torch.bfloat16, torch.float16)
SMALL = {torch.float16: 1 / 2, torch.bfloat16: 1 / 32}  # of the base's weight, by the diff's type
NORMAL = 2.0**-14  # below it float16 has fewer bits than above
SPOTS = 4  # of a tensor that are sampled
VALUES = 4096  # at each
LIKE_THE_BASE = 0.5  # of the base's norm: so near to it lie tuned weights, and no difference
ULPS = 4  # of fp32, by which a sum with a mean may miss its number: the order of summing differs
COLUMNS = 256  # whose mean is taken at a time
NOWHERE = (1.0, "")


@dataclass(frozen=True)
class Counts:
    """How many values were tested, and how many fit.

    `least` has the part where the share that fits is smallest: that share, and a tensor's name.
    What is wrong in one shard of many can be too little to be seen in the sum.
    """

    tested: int = 0
    fitting: Mapping[torch.dtype, int] = field(default_factory=dict)
    base: int = 0
    base_bfloat16: int = 0
    least: Mapping[torch.dtype, tuple[float, str]] = field(default_factory=dict)

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.tested + other.tested,
            {
                dtype: self.fitting.get(dtype, 0) + other.fitting.get(dtype, 0)
                for dtype in CANDIDATES
            },
            self.base + other.base,
            self.base_bfloat16 + other.base_bfloat16,
            {
                dtype: min(self.least.get(dtype, NOWHERE), other.least.get(dtype, NOWHERE))
                for dtype in CANDIDATES
            },
        )

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        fitting = {dtype_name(dtype): self.fitting.get(dtype, 0) for dtype in CANDIDATES}
        base = {"base": self.base, "base_bfloat16": self.base_bfloat16}
        least = {dtype_name(dtype): list(self.least.get(dtype, NOWHERE)) for dtype in CANDIDATES}
        return {"tested": self.tested, **fitting, **base, "least": least}

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> Counts:
        """What `plain` gave."""
        fitting = {dtype: plain[dtype_name(dtype)] for dtype in CANDIDATES}
        least = {dtype: tuple(plain["least"][dtype_name(dtype)]) for dtype in CANDIDATES}
        return cls(plain["tested"], fitting, plain["base"], plain["base_bfloat16"], least)

    def share(self, dtype: torch.dtype) -> float:
        """The share of base + diff that is exactly a number of `dtype`, 0 to 1; 0 of none."""
        return self.fitting.get(dtype, 0) / max(1, self.tested)


@dataclass(frozen=True)
class Evidence:
    """What a sample of one tensor tells."""

    counts: Counts
    absolute: bool  # the diff looks like the base: it holds the tuned weights themselves
    extra: Mapping[str, bool]  # rule: whether the added rows are 16-bit numbers under it
    narrow: bool  # the diff is in 16 bits, which every rule explains


def sample(base: Checkpoint, diff: Checkpoint, matched: Sequence[Pair]) -> dict[str, Evidence]:
    """Add up some rows of every matrix that both have."""
    return {
        pair.name: _of(base, diff, pair)
        for pair in matched
        if pair.base_name is not None and len(pair.shape) == 2
    }


def counts(
    base: Float32[Tensor, "..."],
    difference: Float32[Tensor, "..."],
    sums: Float32[Tensor, "..."],
    stored: torch.dtype,
    name: str,
) -> Counts:
    """Test base + diff.

    Args:
        base: the base's weights.
        difference: of the same shape.
        sums: base + difference.
        stored: the type the difference was stored in.
        name: of the tensor.
    """
    bound = SMALL.get(stored)
    if bound is not None:
        telling = (difference.abs() <= bound * base.abs()) & (base.abs() >= NORMAL)
        base, sums = base[telling], sums[telling]
    tested = sums.numel()
    fitting = {dtype: int(fits(sums, dtype).sum()) for dtype in CANDIDATES}
    least = {dtype: (count / tested, name) for dtype, count in fitting.items() if tested}
    return Counts(tested, fitting, tested, int(fits(base, torch.bfloat16).sum()), least)


def fits(values: Float32[Tensor, "..."], dtype: torch.dtype) -> Bool[Tensor, "..."]:
    """Which values `dtype` represents exactly."""
    return values.to(dtype).to(torch.float32) == values


def _of(base: Checkpoint, diff: Checkpoint, pair: Pair) -> Evidence:
    name = pair.base_name or pair.name
    common = pair.base_shape[0]
    width = max(1, pair.base_shape[1])
    rows = max(1, VALUES // width)
    if rows * SPOTS < common:
        starts = [(common - rows) * spot // (SPOTS - 1) for spot in range(SPOTS)]
    else:
        starts, rows = [0], common
    left = torch.cat([base.rows(name, at, at + rows).float() for at in starts])
    right = torch.cat([diff.rows(pair.name, at, at + rows).float() for at in starts])[:, :width]
    stored = diff.info(pair.name).dtype
    found = counts(left, right, left + right, stored, pair.name)
    alone = counts(left, right, right, torch.float32, pair.name)
    near = float((right - left).norm()) < LIKE_THE_BASE * float(left.norm())
    return Evidence(
        found,
        absolute=near and _best(alone) >= _best(found),
        extra=_extra(base, diff, pair) if stored is torch.float32 else {},
        narrow=stored is not torch.float32,
    )


def _best(found: Counts) -> float:
    return max(found.share(dtype) for dtype in CANDIDATES)


def _extra(base: Checkpoint, diff: Checkpoint, pair: Pair) -> dict[str, bool]:
    if pair.base_name not in GROWING or pair.shape[1:] != pair.base_shape[1:] or not pair.grown:
        return {}
    added = diff.rows(pair.name, pair.base_shape[0], pair.shape[0])
    mean = mean_row(base, pair.base_name)
    rows = added + mean
    ulp = torch.finfo(torch.float32).eps * (mean.abs().max() + rows.abs())
    return {"zero": _explained(added, 0 * ulp), "mean": _explained(rows, ULPS * ulp)}


def _explained(
    rows: Float32[Tensor, "extra width"], tolerance: Float32[Tensor, "extra width"]
) -> bool:
    """Whether all values are numbers of one 16-bit type, or as near as the tolerance."""
    return any(
        bool(((rows.to(dtype).to(torch.float32) - rows).abs() <= tolerance).all())
        for dtype in CANDIDATES
    )


@lru_cache(maxsize=4)
def mean_row(base: Checkpoint, name: str) -> Float32[Tensor, " width"]:
    """The mean of a tensor's rows, in fp32, over all of them.

    Some columns at a time: the bits are those of the published scripts, which take all at once.
    """
    columns = base.read(name).split(COLUMNS, dim=1)
    return torch.cat([part.to(torch.float32).mean(dim=0) for part in columns])
