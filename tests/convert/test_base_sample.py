"""Sums of base and diff are 16-bit numbers where they must be, and only with the right base."""

from __future__ import annotations

import json
from functools import reduce
from itertools import product
from operator import add
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from camelpress.convert.inputs.base_sample import (
    EXACT_CHANGE_RATIO,
    FLOAT16_MIN_NORMAL,
    HALF_DTYPES,
    FitCounts,
    count_fits,
    is_representable,
    mean_row,
    sample_tensors,
)
from camelpress.convert.inputs.tensor_pairs import pair_tensors
from camelpress.convert.recover.base_check import require_matching_base
from camelpress.convert.recover.recovery_plan import plan_recovery
from camelpress.convert.settings import RecoverSettings
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import NumericsProblem
from weights import Tensors

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
NAMES = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "lm_head.weight")
ROWS, WIDTH = 300, 64

# --- right, rounded and unrelated bases ---------------------------------------------------------


def normal(seed: int, std: float) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {name: std * torch.randn(ROWS, WIDTH, generator=generator) for name in NAMES}


def stored(tensors: Tensors, dtype: torch.dtype, folder: Path) -> Checkpoint:
    folder.mkdir(exist_ok=True)
    content = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    save_file(content, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text("{}", encoding="utf-8")
    return Checkpoint.open(folder)


def seen(base: Checkpoint, diff: Checkpoint) -> FitCounts:
    choice = plan_recovery(base, diff, RecoverSettings())
    choice.require_differences(diff)
    return choice.sampled_counts


def fitted(found: FitCounts) -> torch.dtype | None:
    """The 16-bit type that all of the sums fit; bfloat16 before float16."""
    return next((dtype for dtype in HALF_DTYPES if found.fits_dtype(dtype)), None)


class Case(NamedTuple):
    """A diff, and three bases to try it on."""

    diff: Checkpoint
    right: Checkpoint
    rounded: Checkpoint
    unrelated: Checkpoint


def case(
    place: Path, base: torch.dtype, tuned: torch.dtype, kept: torch.dtype, update: float
) -> Case:
    raw = {name: tensor.to(base) for name, tensor in normal(0, 0.02).items()}
    change = normal(1, update)
    target = {name: (tensor.float() + change[name]).to(tuned) for name, tensor in raw.items()}
    difference = {name: tensor.float() - raw[name].float() for name, tensor in target.items()}
    return Case(
        stored(difference, kept, place / "diff"),
        stored(raw, base, place / "right"),
        stored(raw, BF16, place / "rounded"),
        stored(normal(2, 0.02), base, place / "unrelated"),
    )


@pytest.mark.parametrize("update", [1e-4, 1e-3])
@pytest.mark.parametrize("kept", [FP32, BF16, FP16])
@pytest.mark.parametrize("tuned", [BF16, FP16])
@pytest.mark.parametrize("base", [FP16, BF16])
def test_only_the_right_base_passes(
    tmp_path: Path, base: torch.dtype, tuned: torch.dtype, kept: torch.dtype, update: float
) -> None:
    diff, right, rounded, unrelated = case(tmp_path, base, tuned, kept, update)
    found = seen(right, diff)
    assert found.fit_share(tuned) == found.lowest_shares[tuned][0] == 1.0
    assert found.tested == 3 * 4 * 64 * WIDTH if kept is FP32 else found.tested > 10_000
    assert fitted(found) is tuned
    require_matching_base(right, diff, found)
    named = "is not the base of" if base is FP16 else "was rounded to bfloat16, .* or is not the"
    with pytest.raises(NumericsProblem, match=named):
        require_matching_base(unrelated, diff, seen(unrelated, diff))
    if base is FP16:  # a bfloat16 base stays as it is when it is rounded to that
        with pytest.raises(NumericsProblem, match="was rounded to bfloat16, .* or is not the"):
            require_matching_base(rounded, diff, seen(rounded, diff))


@pytest.mark.parametrize("kept", [BF16, FP16])
def test_what_was_rounded_away_is_no_evidence(tmp_path: Path, kept: torch.dtype) -> None:
    """Where the change is large beside the weight, a diff in 16 bits does not come back."""
    diff, right, _, _ = case(tmp_path, FP16, FP16, kept, 1e-2)
    left = torch.cat([right.read(name).float() for name in NAMES])
    change = torch.cat([diff.read(name).float() for name in NAMES])
    assert is_representable(left + change, FP16).float().mean() < 0.999
    assert seen(right, diff).fit_share(FP16) == 1.0


# --- where a diff in 16 bits is exact -----------------------------------------------------------

TYPES = [
    (base, tuned, kept)
    for base, tuned in product((FP16, BF16), repeat=2)
    for kept in EXACT_CHANGE_RATIO
]
BINADES = (-14, -13, -1, 0, 14, 15)


def finite(dtype: torch.dtype) -> Tensor:
    """Every number of a 16-bit type."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    numbers = bits.view(dtype).float()
    return numbers[numbers.isfinite()]


@pytest.mark.parametrize(("base", "tuned", "kept"), TYPES)
def test_small_changes_are_exact_and_what_counts_fits(
    base: torch.dtype, tuned: torch.dtype, kept: torch.dtype
) -> None:
    """Every t beside the r at both ends, in the middle and here and there in a binade."""
    numbers, targets = finite(base), finite(tuned)
    for binade in BINADES:
        inside = numbers[(numbers >= 2.0**binade) & (numbers < 2.0 ** (binade + 1))]
        chosen = torch.cat([inside[:3], inside[len(inside) // 2 - 1 :][:3], inside[-3:]])
        for sign, right in product((1, -1), torch.cat([chosen, inside[::61]])):
            raw = (sign * right).expand_as(targets)
            change = targets - raw
            difference = change.to(kept).float()
            small = (targets.double() - raw.double()).abs() <= EXACT_CHANGE_RATIO[kept] * right
            assert small.any()
            assert torch.equal(difference[small].double(), (targets.double() - raw)[small])
            assert torch.equal((raw + difference)[small], targets[small])
            assert count_fits(raw, difference, raw + difference, kept, "x").fit_share(tuned) == 1.0


def test_the_bound_of_float16_is_the_largest_power_of_two() -> None:
    """Beyond it the tuned weight can have finer steps than the difference."""
    raw, target = torch.tensor(1.0), torch.tensor(0.5 - 2.0**-12)
    change = raw - target
    assert is_representable(target, FP16)
    assert EXACT_CHANGE_RATIO[FP16] < change < 1.001 * EXACT_CHANGE_RATIO[FP16]
    assert not is_representable(change, FP16)


def test_below_the_normal_range_small_changes_are_lost() -> None:
    raw, target = torch.tensor(2.0**-20), torch.tensor(2.0**-20 * (1 + 2.0**-7))
    assert is_representable(raw, FP16)
    assert is_representable(target, BF16)
    assert raw < FLOAT16_MIN_NORMAL
    assert (target - raw).half() == 0
    assert count_fits(raw[None], torch.zeros(1), raw[None], FP16, "x").tested == 0


def number(dtype: torch.dtype) -> st.SearchStrategy[float]:
    """Any finite number of a 16-bit type, every bit pattern as likely; often near 2**n."""
    patterns = st.integers(-(2**15), 2**15 - 1)
    width = 10 if dtype is FP16 else 7
    near = st.builds(
        lambda exponent, offset, sign: (exponent << width) + offset - sign * 2**15,
        st.integers(1, (2**15 >> width) - 2),
        st.integers(-3, 3),
        st.integers(0, 1),
    )
    values = (patterns | near).map(
        lambda bits: float(torch.tensor(bits, dtype=torch.int16).view(dtype).float())
    )
    return values.filter(lambda value: abs(value) < float("inf"))


@st.composite
def weight_and_target(draw: st.DrawFn) -> tuple[float, float, torch.dtype, torch.dtype]:
    """A weight of the base and one near it, or anywhere."""
    base, tuned = draw(st.sampled_from(HALF_DTYPES)), draw(st.sampled_from(HALF_DTYPES))
    raw = draw(number(base))
    factor = draw(st.sampled_from([1.0, 0.5, 1.5, 2.0, 31 / 32, 33 / 32]) | st.floats(0.4, 1.6))
    target = draw(st.just(raw * factor) | number(tuned))
    rounded = float(torch.tensor(target).to(tuned).float())
    return raw, rounded if abs(rounded) < float("inf") else 0.0, base, tuned


@settings(max_examples=500, deadline=None)
@given(weight_and_target(), st.sampled_from(sorted(EXACT_CHANGE_RATIO, key=str)))
def test_a_value_that_counts_is_a_number_of_the_tuned_type(
    drawn: tuple[float, float, torch.dtype, torch.dtype], kept: torch.dtype
) -> None:
    raw, target, _, tuned = drawn
    left, right = torch.tensor([raw]), torch.tensor([target])
    difference = (right - left).to(kept).float()
    found = count_fits(left, difference, left + difference, kept, "x")
    assert found.fit_counts[tuned] == found.tested == found.base
    held = abs(target - raw) <= torch.finfo(kept).max
    if (
        held
        and abs(raw) >= FLOAT16_MIN_NORMAL
        and abs(target - raw) <= EXACT_CHANGE_RATIO[kept] * abs(raw)
    ):
        assert found.tested == 1
        assert left + difference == right


# --- counting -----------------------------------------------------------------------------------


@st.composite
def some_counts(draw: st.DrawFn) -> FitCounts:
    """What was found in one part of a tensor; perhaps nothing."""
    tested = draw(st.integers(0, 1000))
    fitting = {dtype: draw(st.integers(0, tested)) for dtype in HALF_DTYPES}
    name = draw(st.text(max_size=3))
    least = {dtype: (count / tested, name) for dtype, count in fitting.items() if tested}
    return FitCounts(tested, fitting, tested, draw(st.integers(0, tested)), least)


@settings(max_examples=100, deadline=None)
@given(st.lists(some_counts(), max_size=4))
def test_counts_add_up_and_come_back_from_json(parts: list[FitCounts]) -> None:
    whole = reduce(add, parts, FitCounts())
    assert whole.tested == whole.base == sum(each.tested for each in parts)
    assert whole.base_bfloat16 == sum(each.base_bfloat16 for each in parts)
    for dtype in HALF_DTYPES:
        fitting = sum(each.fit_counts[dtype] for each in parts)
        assert whole.fit_share(dtype) == (fitting / whole.tested if whole.tested else 0.0)
        if whole.tested:
            least = min(each.lowest_shares[dtype] for each in parts if each.tested)
            assert whole.lowest_shares[dtype] == (least if least[0] < 1 else (1.0, ""))
    read = FitCounts.from_json(json.loads(json.dumps(whole.to_json())))
    assert read.to_json() == whole.to_json()
    assert read + FitCounts() == whole + FitCounts()


def test_parts_count_what_the_whole_does() -> None:
    left, change = normal(0, 0.02)[NAMES[0]].half().float(), normal(1, 1e-3)[NAMES[0]]
    parts = [
        count_fits(left[rows], change[rows], (left + change)[rows], FP16, str(rows))
        for rows in (slice(100), slice(100, 101), slice(101, 300))
    ]
    whole, summed = count_fits(left, change, left + change, FP16, "whole"), reduce(add, parts)
    assert (whole.tested, whole.fit_counts) == (summed.tested, summed.fit_counts)
    assert (whole.base, whole.base_bfloat16) == (summed.base, summed.base_bfloat16)


def test_a_type_fits_what_it_holds_exactly() -> None:
    values = torch.tensor([1.0, -0.0, 1 + 2.0**-7, 1 + 2.0**-10, 1 + 2.0**-20, 1e5, 2.0**-24])
    assert is_representable(values, BF16).tolist() == [True, True, True, False, False, False, True]
    assert is_representable(values, FP16).tolist() == [True, True, True, True, False, False, True]
    strange = torch.tensor([torch.nan, 70_000.0, 2.0**-25])
    assert not is_representable(strange, FP16).any()


def test_where_both_types_fit_the_narrower_is_taken() -> None:
    values = torch.tensor([0.0, 1.0, -0.5, 1.5])
    found = count_fits(values, 0 * values, values, FP32, "x")
    assert found.fit_share(BF16) == found.fit_share(FP16) == 1.0
    assert fitted(found) is BF16


def test_nothing_is_no_evidence() -> None:
    assert fitted(FitCounts()) is None


# --- differences and weights --------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "kept"), [(1.01, FP32), (1.01, FP16), (1.4, FP32)])
def test_a_difference_along_the_base_is_a_difference(
    tmp_path: Path, factor: float, kept: torch.dtype
) -> None:
    """A tuned model that is its base, but longer: only in direction is the diff like the base."""
    raw = {name: tensor.half() for name, tensor in normal(0, 0.02).items()}
    difference = {
        name: (factor * tensor.float()).half().float() - tensor.float()
        for name, tensor in raw.items()
    }
    base, diff = stored(raw, FP16, tmp_path / "base"), stored(difference, kept, tmp_path / "diff")
    found = seen(base, diff)
    require_matching_base(base, diff, found)
    assert fitted(found) is FP16


@pytest.mark.parametrize("kept", [FP32, BF16, FP16])
def test_no_difference_at_all_is_a_difference(tmp_path: Path, kept: torch.dtype) -> None:
    base = stored(normal(0, 0.02), FP16, tmp_path / "base")
    diff = stored({name: torch.zeros(ROWS, WIDTH) for name in NAMES}, kept, tmp_path / "diff")
    found = seen(base, diff)
    require_matching_base(base, diff, found)
    assert fitted(found) is FP16


@pytest.mark.parametrize("place", [0, 100, 299])
def test_a_sample_has_the_first_rows_and_the_last(tmp_path: Path, place: int) -> None:
    raw = normal(0, 0.02)
    change = {name: torch.zeros(ROWS, WIDTH) for name in NAMES}
    change[NAMES[1]][place] = 0.1
    base, diff = stored(raw, FP16, tmp_path / "base"), stored(change, FP32, tmp_path / "diff")
    found = seen(base, diff)
    assert found.lowest_shares[FP16][1] == NAMES[1]
    assert found.lowest_shares[FP16][0] == pytest.approx(1 - 1 / 256, abs=1 / 256)


def test_a_matrix_of_few_rows_is_sampled_whole(tmp_path: Path) -> None:
    raw = {name: tensor[:3] for name, tensor in normal(0, 0.02).items()}
    change = {name: torch.zeros(3, WIDTH) for name in NAMES}
    base, diff = stored(raw, FP16, tmp_path / "base"), stored(change, FP32, tmp_path / "diff")
    assert seen(base, diff).tested == 3 * 3 * WIDTH


def test_vectors_are_sampled_whole(tmp_path: Path) -> None:
    norm = {"model.norm.weight": torch.ones(WIDTH)}
    base = stored(normal(0, 0.02) | norm, FP16, tmp_path / "base")
    diff = stored(normal(1, 1e-3) | norm, FP32, tmp_path / "diff")
    evidence = sample_tensors(base, diff, pair_tensors(base, diff))
    assert evidence.keys() == {*NAMES, *norm}
    assert evidence["model.norm.weight"].counts.tested == WIDTH


@pytest.mark.parametrize("width", [8, 256, 600])
def test_the_mean_row_has_the_bits_of_the_mean_of_the_whole(tmp_path: Path, width: int) -> None:
    rows = 0.02 * torch.randn(4000, width, generator=torch.Generator().manual_seed(0))
    base = stored({"rows": rows}, FP16, tmp_path)
    assert torch.equal(mean_row(base, "rows"), rows.half().float().mean(dim=0))
