"""What the weights themselves tell of a diff: no checksum of a recovered model was ever published.

A tensor that was saved in 16 bits comes back as numbers of that type, all of them, if base and
diff belong together; with a wrong base hardly one sum in ten is a bfloat16 number, and seven in
ten are float16 numbers (float16 holds most small numbers of any kind). Every tensor is judged by
its own sums, because a model may keep norms or embedding in another type than its matrices.

A diff in 16 bits was itself rounded, but not everywhere: where the change is small beside the
base's weight, tuned - base needs no more bits than a 16-bit type has. Only there it is evidence.
With |change| <= |weight| / 2 float16 holds it, for then both weights are multiples of one float16
step and the difference is at most 2**11 of them (Sterbenz); with |weight| / 32 bfloat16 does, for
then it is at most 2**7 steps.

By the same lemma a float32 diff holds tuned - base exactly where |change| <= |weight| / 2, and
base + diff needs no rounding there. With a wrong base one sum in four does. Therefore a sum counts
as a float32 number only if it is exact.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from camelpress.convert.inputs.tensor_pairs import GROWING, Pair
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.portable_config import dtype_name
from camelpress.core.errors import NumericsProblem

CANDIDATES = (torch.bfloat16, torch.float16)
TYPES = (*CANDIDATES, torch.float32)
SMALL = {torch.float16: 1 / 2, torch.bfloat16: 1 / 32}  # of the base's weight, by the diff's type
NORMAL = 2.0**-14  # below it float16 has fewer bits than above
ROUNDOFF = 2.0**-24  # relative error of one rounding to float32
SPOTS = 4  # of a tensor that are sampled
VALUES = 4096  # at each
NEEDED = 0.999  # least share of the sums of a tensor that are numbers of its type
FEW = 8  # changed sums; fewer are no evidence of a type that the matrices do not have
SIXTEEN = 0.05  # largest share of 16-bit numbers among the changed sums of a float32 tensor
LIKE_THE_BASE = 0.5  # of the base's norm: so near to it lie tuned weights, and no difference
LARGE = 0.1  # of the base's norm: so large are new weights, such as an embedding drawn afresh
ULPS = 4  # of fp32, by which a sum with a mean may miss its number: the order of summing differs
COLUMNS = 256  # whose mean is taken at a time
NOWHERE = (1.0, "")

Values = Float32[Tensor, "..."]


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
            {dtype: self.fitting.get(dtype, 0) + other.fitting.get(dtype, 0) for dtype in TYPES},
            self.base + other.base,
            self.base_bfloat16 + other.base_bfloat16,
            {
                dtype: min(self.least.get(dtype, NOWHERE), other.least.get(dtype, NOWHERE))
                for dtype in TYPES
            },
        )

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        fitting = {dtype_name(dtype): self.fitting.get(dtype, 0) for dtype in TYPES}
        base = {"base": self.base, "base_bfloat16": self.base_bfloat16}
        least = {dtype_name(dtype): list(self.least.get(dtype, NOWHERE)) for dtype in TYPES}
        return {"tested": self.tested, **fitting, **base, "least": least}

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> Counts:
        """What `plain` gave."""
        fitting = {dtype: plain[dtype_name(dtype)] for dtype in TYPES}
        least = {dtype: tuple(plain["least"][dtype_name(dtype)]) for dtype in TYPES}
        return cls(plain["tested"], fitting, plain["base"], plain["base_bfloat16"], least)

    def share(self, dtype: torch.dtype) -> float:
        """The share of base + diff that is exactly a number of `dtype`, 0 to 1; 0 of none."""
        return self.fitting.get(dtype, 0) / max(1, self.tested)

    def fit(self, dtype: torch.dtype) -> bool:
        """Tells whether enough of the sums are numbers of `dtype`; False where none was tested."""
        return self.tested > 0 and self.share(dtype) >= NEEDED

    def counted_as(self, own: torch.dtype, main: torch.dtype) -> Counts:
        """Counts the sums that fit the tensor's own type as if they fit the model's main type."""
        fitting = {**self.fitting, main: self.fitting.get(own, 0)}
        least = {**self.least, main: self.least.get(own, NOWHERE)}
        return replace(self, fitting=fitting, least=least)


@dataclass(frozen=True)
class Evidence:
    """Facts from a sample of one tensor.

    Args:
        counts: of base + diff; nothing is tested where the base has no such tensor.
        alone: of the diff's own values.
        absolute: whether the diff looks like the base: it holds the tuned weights themselves.
        large: whether the diff's values are large beside the base's, without being like them.
        changed: tested sums that differ from the base's weight.
        sixteen: share of 16-bit numbers of either type among these.
        plain: whether all of the base's values are 16-bit numbers.
        extra: rule to whether the added rows are 16-bit numbers under it.
        narrow: whether the diff is in 16 bits, which every rule explains.
        digest: SHA-256 of the base's values; empty where it has none.
    """

    counts: Counts
    alone: Counts
    absolute: bool = False
    large: bool = False
    changed: int = 0
    sixteen: float = 0.0
    plain: bool = False
    extra: Mapping[str, bool] = field(default_factory=dict)
    narrow: bool = False
    digest: str = ""

    @property
    def wide(self) -> bool:
        """Tells whether the sums are float32 numbers that no pair of 16-bit tensors explains.

        Two 16-bit tensors, related or not, give many sums that are 16-bit numbers again, and an
        unrelated base gives many sums that need rounding.
        """
        return (
            self.plain
            and not self.narrow
            and self.changed >= FEW
            and self.sixteen <= SIXTEEN
            and self.counts.fit(torch.float32)
        )


def sample(base: Checkpoint, diff: Checkpoint, matched: Sequence[Pair]) -> dict[str, Evidence]:
    """Adds up some rows of every matrix and vector; of a vector the first 16,384 values or more."""
    return {
        pair.name: _summed(base, diff, pair) if _in_base(pair) else _own(diff, pair)
        for pair in matched
        if _sampled(pair)
    }


def base_digest(base: Checkpoint, matched: Sequence[Pair]) -> str:
    """Returns one digest of all values of the base that a sample reads."""
    return joined_digest(
        {
            pair.name: _digest(_base_rows(base, pair))
            for pair in matched
            if _sampled(pair) and _in_base(pair)
        }
    )


def joined_digest(digests: Mapping[str, str]) -> str:
    """Returns one digest of those of tensors, with the size of the sample."""
    text = "".join(f"{name} {digests[name]}\n" for name in sorted(digests) if digests[name])
    return f"{SPOTS}x{VALUES}:{hashlib.sha256(text.encode()).hexdigest()}"


def counts(
    base: Values, difference: Values, sums: Values, stored: torch.dtype, name: str
) -> Counts:
    """Test base + diff.

    Args:
        base: the base's weights.
        difference: of the same shape.
        sums: base + difference.
        stored: the type the difference was stored in.
        name: of the tensor.
    """
    stored = _rounded_to(base, difference, sums, stored)
    base, difference, sums = _telling(base, difference, sums, stored)
    rounding = ROUNDOFF * (difference.abs() + sums.abs())  # of a float32 diff, and of its sum
    fitting = {dtype: int(_near(sums, dtype, rounding).sum()) for dtype in CANDIDATES}
    fitting[torch.float32] = int(_exact(base, difference, sums).sum())
    return _counts(fitting, sums.numel(), name, int(fits(base, torch.bfloat16).sum()))


def fits(values: Values, dtype: torch.dtype) -> Bool[Tensor, "..."]:
    """Which values `dtype` represents exactly."""
    return values.to(dtype).to(torch.float32) == values


def _counts(
    fitting: Mapping[torch.dtype, int], tested: int, name: str, base_bfloat16: int = 0
) -> Counts:
    least = {dtype: (count / tested, name) for dtype, count in fitting.items() if tested}
    return Counts(tested, fitting, tested, base_bfloat16, least)


def _telling(
    base: Values, difference: Values, sums: Values, stored: torch.dtype
) -> tuple[Values, Values, Values]:
    """Leaves the sums whose difference was not rounded when it was stored."""
    bound = SMALL.get(stored)
    if bound is None:
        return base, difference, sums
    small = (difference.abs() <= bound * base.abs()) & (base.abs() >= NORMAL)
    return base[small], difference[small], sums[small]


def _rounded_to(base: Values, difference: Values, sums: Values, stored: torch.dtype) -> torch.dtype:
    """Returns the type in which a script subtracted that stored its differences in a wider one.

    Such differences are numbers of that type, all of them, and many sums fit no type.
    """
    if stored is not torch.float32 or any(
        float(fits(sums, dtype).float().mean()) >= NEEDED for dtype in CANDIDATES
    ):
        return stored
    for dtype in CANDIDATES:
        if bool(fits(difference, dtype).all()):
            telling, _, _ = _telling(base, difference, sums, dtype)
            return dtype if telling.numel() else stored
    return stored


def _near(values: Values, dtype: torch.dtype, tolerance: Values) -> Bool[Tensor, "..."]:
    return (values.to(dtype).to(torch.float32) - values).abs() <= tolerance


def _exact(base: Values, difference: Values, sums: Values) -> Bool[Tensor, "..."]:
    """Finds the sums that lost no bit, or whose change is so large that they may have."""
    part = sums - base
    lost = (base - (sums - part)) + (difference - part)  # Knuth's TwoSum
    return (lost == 0) | (difference.abs() > base.abs() / 2)


def _sampled(pair: Pair) -> bool:
    shape = pair.base_shape if _in_base(pair) else pair.shape
    return len(shape) in (1, 2) and all(shape)


def _in_base(pair: Pair) -> bool:
    return pair.base_name is not None


def _rows(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> Float32[Tensor, "rows ..."]:
    """Reads the rows that belong to the sample of a tensor of this shape."""
    count = max(1, VALUES // torch.Size(shape[1:]).numel())
    if count * SPOTS >= shape[0]:
        starts, count = [0], shape[0]
    else:
        starts = [(shape[0] - count) * spot // (SPOTS - 1) for spot in range(SPOTS)]
    return torch.cat([checkpoint.rows(name, at, at + count).float() for at in starts])


def _base_rows(base: Checkpoint, pair: Pair) -> Float32[Tensor, "rows ..."]:
    return _rows(base, pair.base_name or pair.name, pair.base_shape)


def _digest(values: Values) -> str:
    return hashlib.sha256(values.contiguous().view(torch.uint8).numpy().data).hexdigest()


def _own(diff: Checkpoint, pair: Pair) -> Evidence:
    """Judges a tensor that the base lacks."""
    values = _rows(diff, pair.name, pair.shape)
    return Evidence(Counts(), _alone(values, pair.name))


def _alone(values: Values, name: str) -> Counts:
    fitting = {dtype: int(fits(values, dtype).sum()) for dtype in TYPES}
    return _counts(fitting, values.numel(), name)


def _summed(base: Checkpoint, diff: Checkpoint, pair: Pair) -> Evidence:
    stored = diff.info(pair.name).dtype
    left, right = _base_rows(base, pair), _rows(diff, pair.name, pair.base_shape)
    right = right[:, : left.shape[1]] if left.ndim > 1 else right
    _require_finite(base, diff, pair.name, left + right)
    together = counts(left, right, left + right, stored, pair.name)
    alone = _alone(right, pair.name)
    near = float((right - left).norm()) < LIKE_THE_BASE * float(left.norm())
    absolute = near and not NEEDED <= _best(together) > _best(alone)
    rounded = _rounded_to(left, right, left + right, stored)
    _, difference, sums = _telling(left, right, left + right, rounded)
    changed = sums[difference != 0]
    return Evidence(
        together,
        alone,
        absolute=absolute,
        large=not absolute and float(right.norm()) >= LARGE * float(left.norm()) > 0,
        changed=changed.numel(),
        sixteen=float(_sixteen(changed).float().mean()) if changed.numel() else 0.0,
        plain=bool(_sixteen(left).all()),
        extra=_extra(base, diff, pair) if stored is torch.float32 else {},
        narrow=rounded is not torch.float32,
        digest=_digest(left),
    )


def _require_finite(base: Checkpoint, diff: Checkpoint, name: str, sums: Values) -> None:
    if not bool(sums.isfinite().all()):
        raise NumericsProblem(
            f"{name!r} of {base.folder} and {diff.folder} gives values that are not finite",
            next_step="download both again",
        )


def _sixteen(values: Values) -> Bool[Tensor, "..."]:
    return fits(values, torch.bfloat16) | fits(values, torch.float16)


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
    return any(bool(_near(rows, dtype, tolerance).all()) for dtype in CANDIDATES)


@lru_cache(maxsize=4)
def mean_row(base: Checkpoint, name: str) -> Float32[Tensor, " width"]:
    """The mean of a tensor's rows, in fp32, over all of them.

    Some columns at a time: the bits are those of the published scripts, which take all at once.
    """
    columns = base.read(name).split(COLUMNS, dim=1)
    return torch.cat([part.to(torch.float32).mean(dim=0) for part in columns])
