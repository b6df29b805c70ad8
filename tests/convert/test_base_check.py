"""A wrong or damaged base is told from the right one by its weights."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

import damage
import pico
import stages
import weights
from camelpress.convert.inputs.base_sample import MIN_FIT_SHARE, FitCounts
from camelpress.convert.recover.base_check import require_matching_base
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import NumericsProblem
from camelpress.core.progress import use_listener
from notes import Notes
from refusal import refusal

EMBEDDING = "model.embed_tokens.weight"
FLOAT32 = "--check off --dtype float32 if the tuned model is float32"
SHARE = r"only (\d+\.\d)% of base \+ diff are (bfloat16|float16) numbers"
BF16, FP16 = torch.bfloat16, torch.float16


@pytest.fixture(scope="module", params=[BF16, FP16], ids=["bf16", "fp16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """What the model was tuned in."""
    found: torch.dtype = request.param
    return found


@pytest.fixture(scope="module")
def diff(base: Path, dtype: torch.dtype, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diff of a model that was tuned in 16 bits."""
    folder = tmp_path_factory.mktemp("diff")
    stages.make_diff(base, pico.write_tuned(folder / "tuned", base, dtype=dtype), folder / "diff")
    return folder / "diff"


@pytest.fixture(scope="module")
def unrelated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model of the same shape."""
    return pico.write_model(tmp_path_factory.mktemp("unrelated") / "base", seed=99)


# --- the base -----------------------------------------------------------------------------------


@pytest.mark.parametrize("check", ["sample", "full"])
def test_all_sums_with_the_right_base_fit_the_type_of_tuning(
    base: Path, diff: Path, dtype: torch.dtype, tmp_path: Path, check: str
) -> None:
    report = stages.recover(base, diff, tmp_path / "out", check=check)
    word = str(dtype).removeprefix("torch.")
    assert report.facts.record["dtype"] == word
    assert report.facts.record["representable"][word] == 1.0
    if check == "full":
        values = sum(tensor.numel() for tensor in weights.read(base).values())
        assert report.facts.record["tested"] == values
        counts = [each["counts"] for each in report.facts.record["tensors"]]
        assert all(each[word] == each["tested"] for each in counts)


@pytest.mark.parametrize("check", ["sample", "full"])
def test_an_unrelated_base_is_refused(
    unrelated: Path, diff: Path, tmp_path: Path, check: str
) -> None:
    with refusal(
        NumericsProblem,
        re.compile(f"{unrelated} is not the base of {diff}: {SHARE}"),
        next_step=f"give the exact base of this diff; {FLOAT32}",
        out=tmp_path / "out",
    ):
        stages.recover(unrelated, diff, tmp_path / "out", check=check)


def test_a_base_rounded_to_bfloat16_is_refused_by_that_name(
    base: Path, diff: Path, tmp_path: Path
) -> None:
    rounded = weights.changed(
        base,
        tmp_path / "rounded",
        lambda tensors: {name: tensor.bfloat16() for name, tensor in tensors.items()},
    )
    with refusal(
        NumericsProblem,
        re.compile(
            f"{rounded} was rounded to bfloat16, which all of its values fit, or is not the base "
            f"of {diff}: {SHARE}"
        ),
        next_step=f"take the exact base, LLaMA-1 in its original float16; {FLOAT32}",
        out=tmp_path / "out",
    ):
        stages.recover(rounded, diff, tmp_path / "out")


def test_an_unrelated_base_that_is_bfloat16_by_nature_may_be_that_too(tmp_path: Path) -> None:
    native = pico.write_model(tmp_path / "native", dtype=BF16)
    stages.make_diff(native, pico.write_tuned(tmp_path / "tuned", native), tmp_path / "diff")
    other = pico.write_model(tmp_path / "other", dtype=BF16, seed=99)
    with pytest.raises(NumericsProblem, match="was rounded to bfloat16, .* or is not the base of"):
        stages.recover(other, tmp_path / "diff", tmp_path / "out")


def test_one_wrong_matrix_in_a_small_model_is_noticed(
    base: Path, unrelated: Path, diff: Path, tmp_path: Path
) -> None:
    name = "model.layers.1.mlp.gate_proj.weight"
    mixed = damage.with_tensors(base, tmp_path / "mixed", {name: weights.read(unrelated)[name]})
    with pytest.raises(NumericsProblem, match="is not the base of"):
        stages.recover(mixed, diff, tmp_path / "out")


def test_what_is_wrong_in_one_tensor_of_many_is_named() -> None:
    """LLaMA-65B has 560 matrices: one of them wrong is too little to be seen in the sum."""
    whole, few = (1.0, "all"), (0.999, "all")
    fine = FitCounts(
        1_000_000, {BF16: 1_000_000, FP16: 999_000}, lowest_shares={BF16: whole, FP16: few}
    )
    bad = FitCounts(
        1000, {BF16: 100, FP16: 700}, lowest_shares={BF16: (0.1, "up"), FP16: (0.7, "up")}
    )
    base, diff = (Checkpoint(Path(name), {}, {}) for name in ("base", "diff"))
    require_matching_base(base, diff, fine)
    assert (fine + bad).fits_dtype(BF16)
    with refusal(
        NumericsProblem,
        "'up' is damaged, in base or in diff: in one place only 10.0% of base + diff are bfloat16 "
        "numbers",
        next_step="download both again",
        out=None,
    ):
        require_matching_base(base, diff, fine + bad)


@pytest.mark.parametrize("fitting", [999, 998])
def test_the_bar_is_at_its_place(fitting: int) -> None:
    share = fitting / 1000
    found = FitCounts(
        1000, {BF16: 1, FP16: fitting}, lowest_shares={BF16: (0.0, ""), FP16: (share, "x")}
    )
    assert found.fits_dtype(FP16) is (share >= MIN_FIT_SHARE)
    assert not found.fits_dtype(BF16)


def test_where_nothing_was_tested_nothing_is_claimed(
    base: Path, diff: Path, tmp_path: Path
) -> None:
    diff = weights.changed(diff, tmp_path / "bare", dict)  # without the header of make-diff
    with refusal(
        NumericsProblem,
        f"nothing in {diff} can tell whether {base} is its base",
        next_step="give --check off and a --dtype, if you know that it is",
        out=tmp_path / "out",
    ):
        stages.recover(base, diff, tmp_path / "out", rule=["*=absolute"])
    report = stages.recover(base, diff, tmp_path / "out", rule=["*=absolute"], check="off")
    out = {name: tensor.float() for name, tensor in weights.read(tmp_path / "out").items()}
    assert weights.same(out, weights.read(diff))
    assert (report.facts.record["dtype"], report.facts.record["tested"]) == ("float32", 0)


def test_with_the_check_off_any_base_is_added(unrelated: Path, diff: Path, tmp_path: Path) -> None:
    stages.recover(unrelated, diff, tmp_path / "out", check="off", dtype="float32")
    expected = weights.summed(weights.read(unrelated), weights.read(diff))
    assert weights.same(weights.read(tmp_path / "out"), expected)


def test_with_the_check_off_auto_still_finds_the_type(
    base: Path, diff: Path, dtype: torch.dtype, tmp_path: Path
) -> None:
    stages.recover(base, diff, tmp_path / "out", check="off")
    assert {tensor.dtype for tensor in weights.read(tmp_path / "out").values()} == {dtype}


# --- one damaged place --------------------------------------------------------------------------

LARGE = pico.Sizes(
    vocab=9000
)  # a sample has rows 0 to 63, 2978 to 3041, 5957 to 6020, and the last
PLACES = {"a few rows": slice(4000, 4040), "one row in a hundred": slice(4000, 4090)}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base and its diff with matrices that are much larger than their samples."""
    place = tmp_path_factory.mktemp("large")
    folder = pico.write_model(place / "base", LARGE)
    stages.make_diff(folder, pico.write_tuned(place / "tuned", folder), place / "diff")
    return folder, place / "diff"


def overwritten(folder: Path, out: Path, rows: slice, how: str) -> Path:
    """A copy in which some rows of the embedding are lost."""
    tensor: Tensor = weights.read(folder)[EMBEDDING].clone()
    noise = torch.randn(tensor[rows].shape, generator=torch.Generator().manual_seed(5))
    tensor[rows] = {"zeros": torch.zeros_like(noise), "noise": 0.05 * noise}[how].to(tensor.dtype)
    return damage.with_tensors(folder, out, {EMBEDDING: tensor})


@pytest.mark.parametrize("rows", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize(("side", "how"), [("base", "noise"), ("diff", "noise"), ("diff", "zeros")])
def test_a_full_check_finds_what_a_sample_misses(
    large: tuple[Path, Path], tmp_path: Path, side: str, how: str, rows: slice
) -> None:
    base, diff = large
    if side == "base":
        base = overwritten(base, tmp_path / "bad", rows, how)
    else:
        diff = overwritten(diff, tmp_path / "bad", rows, how)
    with refusal(
        NumericsProblem,
        re.compile(
            f"'{EMBEDDING}' is damaged, in {base} or in {diff}: in one place only "
            r"(97|98|99)\.\d% of base \+ diff are bfloat16 numbers"
        ),
        next_step="download both again",
        out=tmp_path / "out",
    ):
        stages.recover(base, diff, tmp_path / "out", check="full")
    for check in ("sample", "off"):
        report = stages.recover(base, diff, tmp_path / check, check=check)
        assert report.facts.record["representable"]["bfloat16"] == 1.0


@pytest.mark.parametrize("count", [1, 3, 7])
def test_lost_matrices_are_not_taken_for_another_type(
    base: Path, tuned: Path, tmp_path: Path, count: int
) -> None:
    """A float16 base and nothing else is all float16 numbers."""
    stages.make_diff(base, tuned, tmp_path / "diff")
    names = [name for name in weights.read(base) if "proj" in name][:count]
    hole = damage.with_tensors(
        tmp_path / "diff",
        tmp_path / "hole",
        {name: torch.zeros_like(weights.read(tmp_path / "diff")[name]) for name in names},
    )
    with refusal(
        NumericsProblem,
        re.compile(f"{base} is not the base of {hole}: {SHARE}"),
        next_step=f"give the exact base of this diff; {FLOAT32}",
        out=tmp_path / "out",
    ):
        stages.recover(base, hole, tmp_path / "out")


@pytest.mark.parametrize("kept", [BF16, FP16])
def test_a_full_check_finds_it_in_a_diff_of_16_bits(
    large: tuple[Path, Path], tmp_path: Path, kept: torch.dtype
) -> None:
    base, diff = large
    narrow = weights.changed(
        diff,
        tmp_path / "narrow",
        lambda tensors: {name: tensor.to(kept) for name, tensor in tensors.items()},
    )
    stages.recover(base, narrow, tmp_path / "right", check="full")
    bad = overwritten(base, tmp_path / "bad", slice(4000, 4090), "noise")
    stages.recover(bad, narrow, tmp_path / "sampled")
    with pytest.raises(NumericsProblem, match=f"^'{EMBEDDING}' is damaged, in "):
        stages.recover(bad, narrow, tmp_path / "out", check="full")
    assert not list(tmp_path.glob("out*"))


# --- what is said -------------------------------------------------------------------------------


def test_the_choice_of_type_is_noted(
    base: Path, diff: Path, dtype: torch.dtype, tmp_path: Path
) -> None:
    notes = Notes()
    with use_listener(notes):
        stages.recover(base, diff, tmp_path / "out")
    word = str(dtype).removeprefix("torch.")
    *rules, chosen = notes.heard
    assert rules == [f"{name}: mean, the diff says so" for name in ("lm_head.weight", EMBEDDING)]
    assert re.fullmatch(
        rf"100\.00% of \d+ sampled sums are {word} numbers: that is the dtype of the output",
        chosen,
    )


def test_auto_keeps_float32_where_no_16_bit_type_fits(base: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(4)

    def noise(tensors: weights.Tensors) -> weights.Tensors:
        return {
            name: 1e-3 * torch.randn(tensor.shape, generator=generator)
            for name, tensor in tensors.items()
        }

    difference = weights.changed(base, tmp_path / "diff", noise)
    notes = Notes()
    with use_listener(notes):
        stages.recover(base, difference, tmp_path / "out", check="off")
    expected = weights.summed(weights.read(base), weights.read(difference))
    assert weights.same(weights.read(tmp_path / "out"), expected)
    assert notes.heard == ["the sums fit no 16-bit type: the output is float32"]
