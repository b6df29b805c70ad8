"""Tests base and diff by the sums of sampled weights, as no checksum of a model was published.

If base and diff belong together, all sums of a tensor saved in 16 bits are numbers of that dtype.
With a wrong base hardly one sum in ten is a bfloat16 number, and seven in ten are float16 numbers
(float16 holds most small numbers of any kind). Each tensor is judged by its own sums, because a
model may keep norms or embedding in another dtype than its matrices.

A 16-bit diff was itself rounded, but not everywhere: for a change that is small relative to the
base's weight, tuned - base needs no more bits than a 16-bit dtype has. Only those sums are
evidence. For |change| <= |weight| / 2 float16 holds the difference exactly, since both weights are
multiples of one float16 step and the difference is at most 2**11 steps (Sterbenz); for
|change| <= |weight| / 32 bfloat16 holds it, since it is at most 2**7 steps.

By the same lemma a float32 diff holds tuned - base exactly for |change| <= |weight| / 2, and
base + diff needs no rounding. With a wrong base one sum in four needs rounding. Therefore a sum
counts as a float32 number only if it is exact.
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
# Largest change relative to the base's weight that the dtype of a diff holds exactly.
EXACT_CHANGE_RATIO = {torch.float16: 1 / 2, torch.bfloat16: 1 / 32}
FLOAT16_MIN_NORMAL = 2.0**-14  # smallest float16 number of full precision
ROUNDOFF = 2.0**-24  # relative error of one rounding to float32
SAMPLE_RUNS = 4  # sampled runs of rows per tensor
RUN_VALUES = 4096  # values per run
MIN_FIT_SHARE = 0.999  # share of a tensor's sums that must be numbers of its dtype
MIN_CHANGED_SUMS = 8  # changed sums needed as evidence of a dtype other than the main one
MAX_16BIT_SHARE = 0.05  # share of 16-bit numbers among changed sums of a float32 tensor
MAX_RELATIVE_DISTANCE = 0.5  # distance of tuned weights from the base, relative to its norm
MIN_RELATIVE_NORM = 0.1  # norm of new weights, such as a fresh embedding, relative to the base's
MAX_ULPS = 4  # fp32 units of error of a sum with a mean row, from another order of summing
MEAN_COLUMNS = 256  # columns averaged at a time
NO_SHARE = (1.0, "")  # lowest share and tensor name without any tested sum

Float32Values = Float32[Tensor, "..."]


@dataclass(frozen=True)
class FitCounts:
    """Numbers of tested and fitting sums, per dtype.

    `lowest_shares` holds, per dtype, the lowest share of fitting sums in any part and the name of
    its tensor: damage in one shard of many can vanish in the total.
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
        """Returns the counts as JSON data."""
        fit_counts = {dtype_name(dtype): self.fit_counts.get(dtype, 0) for dtype in FIT_DTYPES}
        base = {"base": self.base, "base_bfloat16": self.base_bfloat16}
        lowest = {
            dtype_name(dtype): list(self.lowest_shares.get(dtype, NO_SHARE)) for dtype in FIT_DTYPES
        }
        return {"tested": self.tested, **fit_counts, **base, "least": lowest}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FitCounts:
        """Reads counts from the data of `to_json`."""
        fit_counts = {dtype: data[dtype_name(dtype)] for dtype in FIT_DTYPES}
        lowest = {dtype: tuple(data["least"][dtype_name(dtype)]) for dtype in FIT_DTYPES}
        return cls(data["tested"], fit_counts, data["base"], data["base_bfloat16"], lowest)

    def fit_share(self, dtype: torch.dtype) -> float:
        """Returns the share of sums that are numbers of `dtype`, 0 to 1; 0 without any sum."""
        return self.fit_counts.get(dtype, 0) / max(1, self.tested)

    def fits_dtype(self, dtype: torch.dtype) -> bool:
        """Returns True if at least `MIN_FIT_SHARE` of the sums, and at least one, fit `dtype`."""
        return self.tested > 0 and self.fit_share(dtype) >= MIN_FIT_SHARE

    def with_main_dtype(self, tensor_dtype: torch.dtype, main_dtype: torch.dtype) -> FitCounts:
        """Counts sums that fit the tensor's own dtype as sums that fit the main dtype."""
        fit_counts = {**self.fit_counts, main_dtype: self.fit_counts.get(tensor_dtype, 0)}
        lowest = {**self.lowest_shares, main_dtype: self.lowest_shares.get(tensor_dtype, NO_SHARE)}
        return replace(self, fit_counts=fit_counts, lowest_shares=lowest)


@dataclass(frozen=True)
class TensorSample:
    """Facts from a sample of one tensor.

    Args:
        counts: fit counts of base + diff; empty for a tensor not in the base.
        own_counts: fit counts of the diff's own values.
        holds_weights: True if the diff's values resemble the base's, so they are tuned weights.
        has_large_values: True if the diff's values are as large as weights, but unlike the base's.
        changed_sums: number of tested sums that differ from the base's weight.
        sixteen_bit_share: share of bfloat16 or float16 numbers among the changed sums.
        base_is_16bit: True if all of the base's values are 16-bit numbers.
        added_rows_fit: rule to True if the added rows are 16-bit numbers under it.
        diff_is_16bit: True for a 16-bit diff; every rule explains its added rows.
        digest: SHA-256 of the base's sampled values; empty for a tensor not in the base.
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
        """True if the sums are float32 numbers that no pair of 16-bit tensors explains.

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
    base: Checkpoint, diff: Checkpoint, pairs: Sequence[TensorPair]
) -> dict[str, TensorSample]:
    """Samples rows of every matrix and vector; vectors of up to 16,384 values are read whole."""
    return {
        pair.name: _sample_sums(base, diff, pair)
        if _in_base(pair)
        else _sample_extra_tensor(diff, pair)
        for pair in pairs
        if _sampled(pair)
    }


def base_sample_digest(base: Checkpoint, pairs: Sequence[TensorPair]) -> str:
    """Returns one digest of all sampled values of the base."""
    return combine_digests(
        {
            pair.name: _digest(_base_rows(base, pair))
            for pair in pairs
            if _sampled(pair) and _in_base(pair)
        }
    )


def combine_digests(digests: Mapping[str, str]) -> str:
    """Combines digests of tensors into one, with the size of the sample in front."""
    text = "".join(f"{name} {digests[name]}\n" for name in sorted(digests) if digests[name])
    return f"{SAMPLE_RUNS}x{RUN_VALUES}:{hashlib.sha256(text.encode()).hexdigest()}"


def count_fits(
    base: Float32Values,
    difference: Float32Values,
    sums: Float32Values,
    stored: torch.dtype,
    name: str,
) -> FitCounts:
    """Counts the sums base + diff that are numbers of each dtype.

    Args:
        base: weights of the base.
        difference: values of the diff, in the shape of base.
        sums: base + difference.
        stored: dtype of the stored difference.
        name: name of the tensor.
    """
    stored = _difference_dtype(base, difference, sums, stored)
    base, difference, sums = _select_exact_changes(base, difference, sums, stored)
    rounding = ROUNDOFF * (difference.abs() + sums.abs())  # error of a float32 diff and of its sum
    fit_counts = {dtype: int(_is_near(sums, dtype, rounding).sum()) for dtype in HALF_DTYPES}
    fit_counts[torch.float32] = int(_is_exact_sum(base, difference, sums).sum())
    return _counts(
        fit_counts, sums.numel(), name, int(is_representable(base, torch.bfloat16).sum())
    )


def is_representable(values: Float32Values, dtype: torch.dtype) -> Bool[Tensor, "..."]:
    """Returns a mask of the values that `dtype` represents exactly."""
    return values.to(dtype).to(torch.float32) == values


def _counts(
    fit_counts: Mapping[torch.dtype, int], tested: int, name: str, base_bfloat16: int = 0
) -> FitCounts:
    lowest = {dtype: (count / tested, name) for dtype, count in fit_counts.items() if tested}
    return FitCounts(tested, fit_counts, tested, base_bfloat16, lowest)


def _select_exact_changes(
    base: Float32Values, difference: Float32Values, sums: Float32Values, stored: torch.dtype
) -> tuple[Float32Values, Float32Values, Float32Values]:
    """Selects the sums with a difference that the stored dtype holds exactly."""
    bound = EXACT_CHANGE_RATIO.get(stored)
    if bound is None:
        return base, difference, sums
    is_exact = (difference.abs() <= bound * base.abs()) & (base.abs() >= FLOAT16_MIN_NORMAL)
    return base[is_exact], difference[is_exact], sums[is_exact]


def _difference_dtype(
    base: Float32Values, difference: Float32Values, sums: Float32Values, stored: torch.dtype
) -> torch.dtype:
    """Returns the dtype of the script's subtraction, possibly narrower than the stored dtype.

    After a 16-bit subtraction all differences are numbers of that dtype, and many sums fit none.
    """
    if stored is not torch.float32 or any(
        float(is_representable(sums, dtype).float().mean()) >= MIN_FIT_SHARE
        for dtype in HALF_DTYPES
    ):
        return stored
    for dtype in HALF_DTYPES:
        if bool(is_representable(difference, dtype).all()):
            exact, _, _ = _select_exact_changes(base, difference, sums, dtype)
            return dtype if exact.numel() else stored
    return stored


def _is_near(
    values: Float32Values, dtype: torch.dtype, tolerance: Float32Values
) -> Bool[Tensor, "..."]:
    return (values.to(dtype).to(torch.float32) - values).abs() <= tolerance


def _is_exact_sum(
    base: Float32Values, difference: Float32Values, sums: Float32Values
) -> Bool[Tensor, "..."]:
    """Returns a mask of the sums without rounding, or with a change too large to tell."""
    change = sums - base
    error = (base - (sums - change)) + (difference - change)  # Knuth's TwoSum
    return (error == 0) | (difference.abs() > base.abs() / 2)


def _sampled(pair: TensorPair) -> bool:
    shape = pair.base_shape if _in_base(pair) else pair.shape
    return len(shape) in (1, 2) and all(shape)


def _in_base(pair: TensorPair) -> bool:
    return pair.base_name is not None


def _rows(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> Float32[Tensor, "rows ..."]:
    """Reads the sampled rows of a tensor of this shape."""
    count = max(1, RUN_VALUES // torch.Size(shape[1:]).numel())
    if count * SAMPLE_RUNS >= shape[0]:
        starts, count = [0], shape[0]
    else:
        starts = [(shape[0] - count) * run // (SAMPLE_RUNS - 1) for run in range(SAMPLE_RUNS)]
    return torch.cat([checkpoint.read_rows(name, start, start + count).float() for start in starts])


def _base_rows(base: Checkpoint, pair: TensorPair) -> Float32[Tensor, "rows ..."]:
    return _rows(base, pair.base_name or pair.name, pair.base_shape)


def _digest(values: Float32Values) -> str:
    return hashlib.sha256(values.contiguous().view(torch.uint8).numpy().data).hexdigest()


def _sample_extra_tensor(diff: Checkpoint, pair: TensorPair) -> TensorSample:
    """Samples a tensor not in the base."""
    values = _rows(diff, pair.name, pair.shape)
    return TensorSample(FitCounts(), _own_counts(values, pair.name))


def _own_counts(values: Float32Values, name: str) -> FitCounts:
    fit_counts = {dtype: int(is_representable(values, dtype).sum()) for dtype in FIT_DTYPES}
    return _counts(fit_counts, values.numel(), name)


def _sample_sums(base: Checkpoint, diff: Checkpoint, pair: TensorPair) -> TensorSample:
    stored = diff.tensor_info(pair.name).dtype
    base_values, differences = _base_rows(base, pair), _rows(diff, pair.name, pair.base_shape)
    differences = differences[:, : base_values.shape[1]] if base_values.ndim > 1 else differences
    _require_finite(base, diff, pair.name, base_values + differences)
    sum_counts = count_fits(base_values, differences, base_values + differences, stored, pair.name)
    own_counts = _own_counts(differences, pair.name)
    is_near = float((differences - base_values).norm()) < MAX_RELATIVE_DISTANCE * float(
        base_values.norm()
    )
    holds_weights = is_near and not MIN_FIT_SHARE <= _best_share(sum_counts) > _best_share(
        own_counts
    )
    difference_dtype = _difference_dtype(
        base_values, differences, base_values + differences, stored
    )
    _, difference, sums = _select_exact_changes(
        base_values, differences, base_values + differences, difference_dtype
    )
    changed_sums = sums[difference != 0]
    return TensorSample(
        sum_counts,
        own_counts,
        holds_weights=holds_weights,
        has_large_values=not holds_weights
        and float(differences.norm()) >= MIN_RELATIVE_NORM * float(base_values.norm()) > 0,
        changed_sums=changed_sums.numel(),
        sixteen_bit_share=float(_is_16bit(changed_sums).float().mean())
        if changed_sums.numel()
        else 0.0,
        base_is_16bit=bool(_is_16bit(base_values).all()),
        added_rows_fit=_added_rows_fit(base, diff, pair) if stored is torch.float32 else {},
        diff_is_16bit=difference_dtype is not torch.float32,
        digest=_digest(base_values),
    )


def _require_finite(base: Checkpoint, diff: Checkpoint, name: str, sums: Float32Values) -> None:
    if not bool(sums.isfinite().all()):
        raise NumericsProblem(
            f"{name!r} of {base.folder} and {diff.folder} gives values that are not finite",
            next_step="download both again",
        )


def _is_16bit(values: Float32Values) -> Bool[Tensor, "..."]:
    return is_representable(values, torch.bfloat16) | is_representable(values, torch.float16)


def _best_share(counts: FitCounts) -> float:
    return max(counts.fit_share(dtype) for dtype in HALF_DTYPES)


def _added_rows_fit(base: Checkpoint, diff: Checkpoint, pair: TensorPair) -> dict[str, bool]:
    if (
        pair.base_name not in TOKEN_TENSORS
        or pair.shape[1:] != pair.base_shape[1:]
        or not pair.is_larger
    ):
        return {}
    extra_rows = diff.read_rows(pair.name, pair.base_shape[0], pair.shape[0])
    mean = mean_row(base, pair.base_name)
    rows = extra_rows + mean
    ulp = torch.finfo(torch.float32).eps * (mean.abs().max() + rows.abs())
    return {"zero": _fits_16bit(extra_rows, 0 * ulp), "mean": _fits_16bit(rows, MAX_ULPS * ulp)}


def _fits_16bit(
    rows: Float32[Tensor, "extra width"], tolerance: Float32[Tensor, "extra width"]
) -> bool:
    """Returns True if all values are, within the tolerance, numbers of one 16-bit dtype."""
    return any(bool(_is_near(rows, dtype, tolerance).all()) for dtype in HALF_DTYPES)


@lru_cache(maxsize=4)
def mean_row(base: Checkpoint, name: str) -> Float32[Tensor, " width"]:
    """Computes the mean of all rows of a tensor, in fp32.

    It averages some columns at a time, bit for bit like the published scripts, which average all
    columns at once.
    """
    columns = base.read(name).split(MEAN_COLUMNS, dim=1)
    return torch.cat([block.to(torch.float32).mean(dim=0) for block in columns])
