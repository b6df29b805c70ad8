"""A wrong base is told from the right one by its weights, before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import pico
import weights
from camelpress.convert.pairs import pairs
from camelpress.convert.run import REPORT, make_diff, recover
from camelpress.convert.settings import MakeDiff, Recover
from camelpress.convert.verify import Evidence, sample, share_fitting
from camelpress.core.checkpoint import Checkpoint
from camelpress.core.errors import NumericsProblem
from camelpress.core.progress import Silence, listening
from camelpress.core.report import Report


def differ(base: Path, tuned: Path, out: Path) -> Path:
    make_diff(Checkpoint.open(base), Checkpoint.open(tuned), out, MakeDiff())
    return out


def add(base: Path, diff: Path, out: Path, settings: Recover | None = None) -> Path:
    recover(Checkpoint.open(base), Checkpoint.open(diff), out, settings or Recover())
    return out


def evidence(base: Path, diff: Path) -> Evidence:
    left, right = Checkpoint.open(base), Checkpoint.open(diff)
    return sample(left, right, pairs(left, right))


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """What the model was tuned in."""
    found: torch.dtype = request.param
    return found


@pytest.fixture(scope="module")
def diff(base: Path, dtype: torch.dtype, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diff of a model that was tuned in 16 bits."""
    folder = tmp_path_factory.mktemp("diff")
    return differ(base, pico.write_tuned(folder / "tuned", base, dtype=dtype), folder / "diff")


@pytest.fixture(scope="module")
def rounded(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base as a converter of today leaves it: in bf16."""
    return weights.changed(
        base,
        tmp_path_factory.mktemp("rounded") / "base",
        lambda tensors: {name: tensor.bfloat16() for name, tensor in tensors.items()},
    )


@pytest.fixture(scope="module")
def unrelated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model of the same shape."""
    return pico.write_model(tmp_path_factory.mktemp("unrelated") / "base", seed=99)


def test_all_sums_with_the_right_base_fit_the_type_of_tuning(
    base: Path, diff: Path, dtype: torch.dtype
) -> None:
    found = evidence(base, diff)
    assert found.shares[dtype] == 1.0
    assert found.best is dtype
    assert found.base_fits_bfloat16 < 0.5


def test_an_unrelated_base_is_refused(unrelated: Path, diff: Path, tmp_path: Path) -> None:
    with pytest.raises(NumericsProblem, match="is not the base of .* only .* numbers") as told:
        add(unrelated, diff, tmp_path / "out")
    assert "rounded" not in told.value.what
    assert told.value.next_step.startswith("give the exact base of this diff")
    assert told.value.next_step.endswith("--dtype float32 if the tuned model is float32")
    assert not list(tmp_path.iterdir())


def test_a_base_rounded_to_bfloat16_is_refused_by_that_name(
    rounded: Path, diff: Path, tmp_path: Path
) -> None:
    with pytest.raises(NumericsProblem, match="was rounded to bfloat16") as told:
        add(rounded, diff, tmp_path / "out")
    assert "original float16" in told.value.next_step


def test_an_unrelated_base_that_is_bfloat16_by_nature_may_be_that_too(
    base: Path, tmp_path: Path
) -> None:
    native = pico.write_model(tmp_path / "native", dtype=torch.bfloat16)
    tuned = pico.write_tuned(tmp_path / "tuned", native)
    difference = differ(native, tuned, tmp_path / "diff")
    other = pico.write_model(tmp_path / "other", dtype=torch.bfloat16, seed=99)
    with pytest.raises(NumericsProblem, match="was rounded to bfloat16, .* or is not the base of"):
        add(other, difference, tmp_path / "out")


def test_one_wrong_matrix_in_a_good_base_is_noticed(
    base: Path, unrelated: Path, diff: Path, tmp_path: Path
) -> None:
    name = "model.layers.1.mlp.gate_proj.weight"
    mixed = weights.changed(
        base, tmp_path / "mixed", lambda tensors: tensors | {name: weights.read(unrelated)[name]}
    )
    with pytest.raises(NumericsProblem, match="is not the base of"):
        add(mixed, diff, tmp_path / "out")


@pytest.mark.parametrize("kept", [torch.bfloat16, torch.float16])
def test_a_diff_in_16_bits_is_itself_rounded_and_still_accepted(
    base: Path, diff: Path, tmp_path: Path, kept: torch.dtype
) -> None:
    small = weights.changed(
        diff,
        tmp_path / "small",
        lambda tensors: {name: tensor.to(kept) for name, tensor in tensors.items()},
    )
    found = evidence(base, small)
    assert 0.9 < found.shares[found.best] <= 1.0
    add(base, small, tmp_path / "out")


def test_with_the_check_off_any_base_is_added(unrelated: Path, diff: Path, tmp_path: Path) -> None:
    out = add(unrelated, diff, tmp_path / "out", Recover(check="off", dtype="float32"))
    expected = weights.summed(weights.read(unrelated), weights.read(diff))
    assert weights.same(weights.read(out), expected)
    assert Report.read(out / REPORT).facts["representable"] is None


def test_with_the_check_off_auto_still_finds_the_type(
    base: Path, diff: Path, dtype: torch.dtype, tmp_path: Path
) -> None:
    out = add(base, diff, tmp_path / "out", Recover(check="off"))
    assert {tensor.dtype for tensor in weights.read(out).values()} == {dtype}


class Notes(Silence):
    """A listener that remembers."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def note(self, text: str) -> None:
        self.heard.append(text)


def test_the_choice_of_type_is_noted(
    base: Path, diff: Path, dtype: torch.dtype, tmp_path: Path
) -> None:
    notes = Notes()
    with listening(notes):
        add(base, diff, tmp_path / "out")
    word = str(dtype).removeprefix("torch.")
    (heard,) = notes.heard
    assert heard.startswith("100.00% of ")
    assert heard.endswith(f"sampled sums are {word} numbers: that is the dtype of the output")


def test_auto_keeps_float32_where_no_16_bit_type_fits(base: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(4)

    def noise(tensors: weights.Tensors) -> weights.Tensors:
        return {
            name: 1e-3 * torch.randn(tensor.shape, generator=generator)
            for name, tensor in tensors.items()
        }

    difference = weights.changed(base, tmp_path / "diff", noise)
    notes = Notes()
    with listening(notes):
        out = add(base, difference, tmp_path / "out", Recover(check="off"))
    expected = weights.summed(weights.read(base), weights.read(difference))
    assert weights.same(weights.read(out), expected)
    assert notes.heard == ["the sums fit no 16-bit type: the output is float32"]


def test_both_types_are_equal_for_numbers_that_both_hold() -> None:
    values = torch.tensor([0.0, 1.0, -0.5, 1.5])
    assert share_fitting(values, torch.bfloat16) == share_fitting(values, torch.float16) == 1.0
    shares = {torch.bfloat16: 1.0, torch.float16: 1.0}
    assert Evidence(shares, 1.0, 4).best is torch.bfloat16


def test_shares_count_what_a_type_holds_exactly() -> None:
    values = torch.tensor([1.0, 1 + 2.0**-7, 1 + 2.0**-10, 1 + 2.0**-20, 1e5])
    assert share_fitting(values, torch.bfloat16) == pytest.approx(0.4)
    assert share_fitting(values, torch.float16) == pytest.approx(0.6)
