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

from camelpress.convert.inputs.tensor_pairs import TOKEN_TENSORS, TensorPair
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.portable_config import dtype_name
from camelpress.core.errors import NumericsProblem

HALF_DTYPES = (torch.bfloat16, torch.float16)
FIT_DTYPES = (*HALF_DTYPES, torch.float32)
EXACT_CHANGE_RATIO = {
    torch.float16: 1 / 2,
    torch.bfloat16: 1 / 32,
}  # of the base's weight, by the diff's type
FLOAT16_MIN_NORMAL = 2.0**-14  # below it float16 has fewer bits than above
ROUNDOFF = 2.0**-24  # relative error of one rounding to float32
SAMPLE_RUNS = 4  # of a tensor that are sampled
RUN_VALUES = 4096  # at each
MIN_FIT_SHARE = 0.999  # least share of the sums of a tensor that are numbers of its type
MIN_CHANGED_SUMS = 8  # changed sums; fewer are no evidence of a type that the matrices do not have
MAX_16BIT_SHARE = 0.05  # largest share of 16-bit numbers among the changed sums of a float32 tensor
MAX_RELATIVE_DISTANCE = (
    0.5  # of the base's norm: so near to it lie tuned weights, and no difference
)
MIN_RELATIVE_NORM = (
    0.1  # of the base's norm: so large are new weights, such as an embedding drawn afresh
)
MAX_ULPS = (
    4  # of fp32, by which a sum with a mean may miss its number: the order of summing differs
)
MEAN_COLUMNS = 256  # whose mean is taken at a time
NO_SHARE = (1.0, "")

Float32Values = Float32[Tensor, "..."]


@dataclass(frozen=True)
class FitCounts:
    """How many values were tested, and how many fit.

    `least` has the part where the share that fits is smallest: that share, and a tensor's name.
    What is wrong in one shard of many can be too little to be seen in the sum.
    """

    tested: int = 0
    fit_counts: Mapping[torch.dtype, int] = field(default_factory=dict)
    base: int = 0
    base_bfloat16: int = 0
    lowest_shares: Mapping[torch.dtype, tuple[float, str]] = field(default_factory=dict)

    def __add__(self, other: FitCounts) -> FitCounts:
        return FitCounts(
            self.tested + other.tested,
            {
                dtype: self.fit_counts.get(dtype, 0) + other.fit_counts.get(dtype, 0)
                for dtype in FIT_DTYPES
            },
            self.base + other.base,
            self.base_bfloat16 + other.base_bfloat16,
            {
                dtype: min(
                    self.lowest_shares.get(dtype, NO_SHARE),
                    other.lowest_shares.get(dtype, NO_SHARE),
                )
                for dtype in FIT_DTYPES
            },
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        fitting = {dtype_name(dtype): self.fit_counts.get(dtype, 0) for dtype in FIT_DTYPES}
        base = {"base": self.base, "base_bfloat16": self.base_bfloat16}
        least = {
            dtype_name(dtype): list(self.lowest_shares.get(dtype, NO_SHARE)) for dtype in FIT_DTYPES
        }
        return {"tested": self.tested, **fitting, **base, "least": least}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> FitCounts:
        """What `plain` gave."""
        fitting = {dtype: plain[dtype_name(dtype)] for dtype in FIT_DTYPES}
        least = {dtype: tuple(plain["least"][dtype_name(dtype)]) for dtype in FIT_DTYPES}
        return cls(plain["tested"], fitting, plain["base"], plain["base_bfloat16"], least)

    def fit_share(self, dtype: torch.dtype) -> float:
        """The share of base + diff that is exactly a number of `dtype`, 0 to 1; 0 of none."""
        return self.fit_counts.get(dtype, 0) / max(1, self.tested)

    def fits_dtype(self, dtype: torch.dtype) -> bool:
        """Tells whether enough of the sums are numbers of `dtype`; False where none was tested."""
        return self.tested > 0 and self.fit_share(dtype) >= MIN_FIT_SHARE

    def with_main_dtype(self, own: torch.dtype, main: torch.dtype) -> FitCounts:
        """Counts the sums that fit the tensor's own type as if they fit the model's main type."""
        fitting = {**self.fit_counts, main: self.fit_counts.get(own, 0)}
        least = {**self.lowest_shares, main: self.lowest_shares.get(own, NO_SHARE)}
        return replace(self, fit_counts=fitting, lowest_shares=least)


@dataclass(frozen=True)
class TensorSample:
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

    counts: FitCounts
    own_counts: FitCounts
    holds_weights: bool = False
    has_large_values: bool = False
    changed_sums: int = 0
    sixteen_bit_share: float = 0.0
    base_is_16bit: bool = False
    added_rows_fit: Mapping[str, bool] = field(default_factory=dict)
    diff_is_16bit: bool = False
    digest: str = ""

    @property
    def needs_float32(self) -> bool:
        """Tells whether the sums are float32 numbers that no pair of 16-bit tensors explains.

        Two 16-bit tensors, related or not, give many sums that are 16-bit numbers again, and an
        unrelated base gives many sums that need rounding.
        """
        return (
            self.base_is_16bit
            and not self.diff_is_16bit
            and self.changed_sums >= MIN_CHANGED_SUMS
            and self.sixteen_bit_share <= MAX_16BIT_SHARE
            and self.counts.fits_dtype(torch.float32)
        )


def sample_tensors(
    base: Checkpoint, diff: Checkpoint, matched: Sequence[TensorPair]
) -> dict[str, TensorSample]:
    """Adds up some rows of every matrix and vector; of a vector the first 16,384 values or more."""
    return {
        pair.name: _sample_sums(base, diff, pair)
        if _in_base(pair)
        else _sample_extra_tensor(diff, pair)
        for pair in matched
        if _sampled(pair)
    }


def base_sample_digest(base: Checkpoint, matched: Sequence[TensorPair]) -> str:
    """Returns one digest of all values of the base that a sample reads."""
    return combine_digests(
        {
            pair.name: _digest(_base_rows(base, pair))
            for pair in matched
            if _sampled(pair) and _in_base(pair)
        }
    )


def combine_digests(digests: Mapping[str, str]) -> str:
    """Returns one digest of those of tensors, with the size of the sample."""
    text = "".join(f"{name} {digests[name]}\n" for name in sorted(digests) if digests[name])
    return f"{SAMPLE_RUNS}x{RUN_VALUES}:{hashlib.sha256(text.encode()).hexdigest()}"


def count_fits(
    base: Float32Values,
    difference: Float32Values,
    sums: Float32Values,
    stored: torch.dtype,
    name: str,
) -> FitCounts:
    """Test base + diff.

    Args:
        base: the base's weights.
        difference: of the same shape.
        sums: base + difference.
        stored: the type the difference was stored in.
        name: of the tensor.
    """
    stored = _difference_dtype(base, difference, sums, stored)
    base, difference, sums = _select_exact_changes(base, difference, sums, stored)
    rounding = ROUNDOFF * (difference.abs() + sums.abs())  # of a float32 diff, and of its sum
    fitting = {dtype: int(_is_near(sums, dtype, rounding).sum()) for dtype in HALF_DTYPES}
    fitting[torch.float32] = int(_is_exact_sum(base, difference, sums).sum())
    return _counts(fitting, sums.numel(), name, int(is_representable(base, torch.bfloat16).sum()))


def is_representable(values: Float32Values, dtype: torch.dtype) -> Bool[Tensor, "..."]:
    """Which values `dtype` represents exactly."""
    return values.to(dtype).to(torch.float32) == values


def _counts(
    fitting: Mapping[torch.dtype, int], tested: int, name: str, base_bfloat16: int = 0
) -> FitCounts:
    least = {dtype: (count / tested, name) for dtype, count in fitting.items() if tested}
    return FitCounts(tested, fitting, tested, base_bfloat16, least)


def _select_exact_changes(
    base: Float32Values, difference: Float32Values, sums: Float32Values, stored: torch.dtype
) -> tuple[Float32Values, Float32Values, Float32Values]:
    """Leaves the sums whose difference was not rounded when it was stored."""
    bound = EXACT_CHANGE_RATIO.get(stored)
    if bound is None:
        return base, difference, sums
    small = (difference.abs() <= bound * base.abs()) & (base.abs() >= FLOAT16_MIN_NORMAL)
    return base[small], difference[small], sums[small]


def _difference_dtype(
    base: Float32Values, difference: Float32Values, sums: Float32Values, stored: torch.dtype
) -> torch.dtype:
    """Returns the type in which a script subtracted that stored its differences in a wider one.

    Such differences are numbers of that type, all of them, and many sums fit no type.
    """
    if stored is not torch.float32 or any(
        float(is_representable(sums, dtype).float().mean()) >= MIN_FIT_SHARE
        for dtype in HALF_DTYPES
    ):
        return stored
    for dtype in HALF_DTYPES:
        if bool(is_representable(difference, dtype).all()):
            telling, _, _ = _select_exact_changes(base, difference, sums, dtype)
            return dtype if telling.numel() else stored
    return stored


def _is_near(
    values: Float32Values, dtype: torch.dtype, tolerance: Float32Values
) -> Bool[Tensor, "..."]:
    return (values.to(dtype).to(torch.float32) - values).abs() <= tolerance


def _is_exact_sum(
    base: Float32Values, difference: Float32Values, sums: Float32Values
) -> Bool[Tensor, "..."]:
    """Finds the sums that lost no bit, or whose change is so large that they may have."""
    part = sums - base
    lost = (base - (sums - part)) + (difference - part)  # Knuth's TwoSum
    return (lost == 0) | (difference.abs() > base.abs() / 2)


def _sampled(pair: TensorPair) -> bool:
    shape = pair.base_shape if _in_base(pair) else pair.shape
    return len(shape) in (1, 2) and all(shape)


def _in_base(pair: TensorPair) -> bool:
    return pair.base_name is not None


def _rows(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> Float32[Tensor, "rows ..."]:
    """Reads the rows that belong to the sample of a tensor of this shape."""
    count = max(1, RUN_VALUES // torch.Size(shape[1:]).numel())
    if count * SAMPLE_RUNS >= shape[0]:
        starts, count = [0], shape[0]
    else:
        starts = [(shape[0] - count) * spot // (SAMPLE_RUNS - 1) for spot in range(SAMPLE_RUNS)]
    return torch.cat([checkpoint.read_rows(name, at, at + count).float() for at in starts])


def _base_rows(base: Checkpoint, pair: TensorPair) -> Float32[Tensor, "rows ..."]:
    return _rows(base, pair.base_name or pair.name, pair.base_shape)


def _digest(values: Float32Values) -> str:
    return hashlib.sha256(values.contiguous().view(torch.uint8).numpy().data).hexdigest()


def _sample_extra_tensor(diff: Checkpoint, pair: TensorPair) -> TensorSample:
    """Judges a tensor that the base lacks."""
    values = _rows(diff, pair.name, pair.shape)
    return TensorSample(FitCounts(), _own_counts(values, pair.name))


def _own_counts(values: Float32Values, name: str) -> FitCounts:
    fitting = {dtype: int(is_representable(values, dtype).sum()) for dtype in FIT_DTYPES}
    return _counts(fitting, values.numel(), name)


def _sample_sums(base: Checkpoint, diff: Checkpoint, pair: TensorPair) -> TensorSample:
    stored = diff.tensor_info(pair.name).dtype
    left, right = _base_rows(base, pair), _rows(diff, pair.name, pair.base_shape)
    right = right[:, : left.shape[1]] if left.ndim > 1 else right
    _require_finite(base, diff, pair.name, left + right)
    together = count_fits(left, right, left + right, stored, pair.name)
    alone = _own_counts(right, pair.name)
    near = float((right - left).norm()) < MAX_RELATIVE_DISTANCE * float(left.norm())
    absolute = near and not MIN_FIT_SHARE <= _best_share(together) > _best_share(alone)
    rounded = _difference_dtype(left, right, left + right, stored)
    _, difference, sums = _select_exact_changes(left, right, left + right, rounded)
    changed = sums[difference != 0]
    return TensorSample(
        together,
        alone,
        holds_weights=absolute,
        has_large_values=not absolute
        and float(right.norm()) >= MIN_RELATIVE_NORM * float(left.norm()) > 0,
        changed_sums=changed.numel(),
        sixteen_bit_share=float(_is_16bit(changed).float().mean()) if changed.numel() else 0.0,
        base_is_16bit=bool(_is_16bit(left).all()),
        added_rows_fit=_added_rows_fit(base, diff, pair) if stored is torch.float32 else {},
        diff_is_16bit=rounded is not torch.float32,
        digest=_digest(left),
    )


def _require_finite(base: Checkpoint, diff: Checkpoint, name: str, sums: Float32Values) -> None:
    if not bool(sums.isfinite().all()):
        raise NumericsProblem(
            f"{name!r} of {base.folder} and {diff.folder} gives values that are not finite",
            next_step="download both again",
        )


def _is_16bit(values: Float32Values) -> Bool[Tensor, "..."]:
    return is_representable(values, torch.bfloat16) | is_representable(values, torch.float16)


def _best_share(found: FitCounts) -> float:
    return max(found.fit_share(dtype) for dtype in HALF_DTYPES)


def _added_rows_fit(base: Checkpoint, diff: Checkpoint, pair: TensorPair) -> dict[str, bool]:
    if (
        pair.base_name not in TOKEN_TENSORS
        or pair.shape[1:] != pair.base_shape[1:]
        or not pair.is_larger
    ):
        return {}
    added = diff.read_rows(pair.name, pair.base_shape[0], pair.shape[0])
    mean = mean_row(base, pair.base_name)
    rows = added + mean
    ulp = torch.finfo(torch.float32).eps * (mean.abs().max() + rows.abs())
    return {"zero": _fits_16bit(added, 0 * ulp), "mean": _fits_16bit(rows, MAX_ULPS * ulp)}


def _fits_16bit(
    rows: Float32[Tensor, "extra width"], tolerance: Float32[Tensor, "extra width"]
) -> bool:
    """Whether all values are numbers of one 16-bit type, or as near as the tolerance."""
    return any(bool(_is_near(rows, dtype, tolerance).all()) for dtype in HALF_DTYPES)


@lru_cache(maxsize=4)
def mean_row(base: Checkpoint, name: str) -> Float32[Tensor, " width"]:
    """The mean of a tensor's rows, in fp32, over all of them.

    Some columns at a time: the bits are those of the published scripts, which take all at once.
    """
    columns = base.read(name).split(MEAN_COLUMNS, dim=1)
    return torch.cat([part.to(torch.float32).mean(dim=0) for part in columns])
