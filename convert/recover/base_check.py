"""Checks from the weights, before anything is written, that a diff belongs to its base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from camelpress.convert.inputs.base_sample import (
    HALF_DTYPES,
    MIN_FIT_SHARE,
    FitCounts,
    TensorSample,
)
from camelpress.convert.recover.output_dtypes import OutputDtypes
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.portable_config import dtype_name
from camelpress.core.errors import NumericsProblem

DAMAGED_MIN_SHARE = 0.99  # share of fitting sums with the right base and one damaged tensor
# Share of bfloat16 numbers among the values of a bfloat16 base; a float16 base has one in eight.
MIN_BFLOAT16_SHARE = 0.9
MAX_NAMES = 3  # tensors listed in a message


def _likely_dtype(counts: FitCounts) -> torch.dtype:
    """Returns the likely dtype of a tuned model with these sums, tolerating damaged values.

    On a float16 base, half of the sums are bfloat16 numbers only if all should be. Nearly all are
    then float16 numbers, too; if only zeros are left of a diff, every sum is.
    """
    share = counts.fit_share(torch.bfloat16)
    bfloat16 = share >= MIN_FIT_SHARE or (share > 1 / 2 and not _is_bfloat16(counts))
    return torch.bfloat16 if bfloat16 else torch.float16


def _is_bfloat16(counts: FitCounts) -> bool:
    return counts.base_bfloat16 > MIN_BFLOAT16_SHARE * counts.base


def require_differences(
    diff: Checkpoint, samples: Mapping[str, TensorSample], dtypes: OutputDtypes
) -> None:
    """Checks that the tensors of a diff are differences, or clearly weights or differences.

    Args:
        diff: published diff.
        samples: name to sample of the tensor.
        dtypes: decided dtypes; their unexplained tensors are suspects.
    Raises:
        NumericsProblem: the diff is a model with tensors like the base's; or some tensors are
            weights, and others are neither weights nor differences from this base.
    """
    weight_names = [name for name, sample in samples.items() if sample.holds_weights]
    difference_names = [name for name in samples if name not in weight_names]
    if weight_names and not difference_names:
        raise NumericsProblem(
            f"{diff.folder} holds weights, not differences: its tensors are like the base's",
            next_step="use it as it is, nothing has to be recovered; or give the diff",
        )
    unclear_names = [
        name
        for name in difference_names
        if name in dtypes.unexplained or not _differs(samples[name])
    ]
    if len(weight_names) > len(difference_names) and unclear_names:
        raise NumericsProblem(
            f"{diff.folder} holds weights, not differences, in {len(weight_names)} tensors, such "
            f"as {weight_names[0]!r}; but {_format_names(unclear_names)} is neither like the "
            "base's nor a difference from it",
            next_step="undo the change with the script of its authors; the file is no working "
            "model, and no rule of recover fits it",
        )
    _require_no_unexplained_weights(diff, samples, dtypes, difference_names)


def _differs(sample: TensorSample) -> bool:
    """Returns True for a tensor with changed sums, or without a base tensor to compare."""
    return not sample.digest or sample.changed_sums > 0


def _require_no_unexplained_weights(
    diff: Checkpoint,
    samples: Mapping[str, TensorSample],
    dtypes: OutputDtypes,
    difference_names: Sequence[str],
) -> None:
    large_names = [
        name
        for name in difference_names
        if name in dtypes.unexplained and _may_be_whole(samples[name])
    ]
    if (
        not large_names
        or len(dtypes.unexplained) > len(large_names)
        or len(large_names) > len(difference_names) / 2
    ):
        return
    rules = " ".join(f"--rule {name}=absolute" for name in large_names)
    raise NumericsProblem(
        f"{_format_names(large_names)} in {diff.folder} is no difference from this base, though "
        f"the {len(difference_names) - len(large_names)} other tensors are; its values are large "
        "enough for weights",
        next_step=f"give {rules} if it was published whole, else download both again",
    )


def _may_be_whole(sample: TensorSample) -> bool:
    return sample.has_large_values and any(
        sample.own_counts.fits_dtype(dtype) for dtype in HALF_DTYPES
    )


def _format_names(names: Sequence[str]) -> str:
    rest = len(names) - MAX_NAMES
    return ", ".join(map(repr, names[:MAX_NAMES])) + (f" and {rest} more" if rest > 0 else "")


def require_same_base_digest(
    base: Checkpoint, diff: Checkpoint, digest: str | None, *, proven: bool
) -> None:
    """Checks that the base matches the digest in the diff's header.

    Args:
        base: raw model.
        diff: diff of the base.
        digest: digest of the base's sampled values, as the diff states it; None: not stated.
        proven: True if the digest matches.
    Raises:
        NumericsProblem: the base has other values.
    """
    if digest is not None and not proven:
        raise NumericsProblem(
            f"{base.folder} is not the base of {diff.folder}: its weights do not have the SHA-256 "
            "stated in the diff",
            next_step="give the exact base of this diff, unrounded",
        )


def require_matching_base(
    base: Checkpoint, diff: Checkpoint, counts: FitCounts, main_dtype: torch.dtype | None = None
) -> None:
    """Checks that base and diff belong together in every tested tensor.

    Args:
        base: raw model.
        diff: difference between tuned and raw model.
        counts: fitting sums of all tensors, counted as sums of the main dtype.
        main_dtype: dtype of most matrices; None: not known.
    Raises:
        NumericsProblem: the base was rounded to bfloat16, the base is unrelated, a tensor is
            damaged, or nothing was tested.
    """
    if not counts.tested:
        raise NumericsProblem(
            f"nothing in {diff.folder} can tell whether {base.folder} is its base",
            next_step="give --check off and a --dtype, if you know that it is",
        )
    dtype = main_dtype or _likely_dtype(counts)
    share, (lowest, name) = counts.fit_share(dtype), counts.lowest_shares[dtype]
    if lowest >= MIN_FIT_SHARE:
        return
    rounded = _is_bfloat16(counts)
    if share >= DAMAGED_MIN_SHARE and not (rounded and dtype is torch.float16):
        raise NumericsProblem(
            f"{name!r} is damaged, in {base.folder} or in {diff.folder}: in one place only "
            f"{lowest:.1%} of base + diff are {dtype_name(dtype)} numbers",
            next_step="download both again",
        )
    finding = f"only {share:.1%} of base + diff are {dtype_name(dtype)} numbers"
    float32_advice = "--check off --dtype float32 if the tuned model is float32"
    if rounded:
        raise NumericsProblem(
            f"{base.folder} was rounded to bfloat16, which all of its values fit, or is not the "
            f"base of {diff.folder}: {finding}",
            next_step=f"take the exact base, LLaMA-1 in its original float16; {float32_advice}",
        )
    raise NumericsProblem(
        f"{base.folder} is not the base of {diff.folder}: {finding}",
        next_step=f"give the exact base of this diff; {float32_advice}",
    )
