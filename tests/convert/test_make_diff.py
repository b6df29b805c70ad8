"""A diff in float32 is exact, or it is not made; one in 16 bits is as near as it says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

import damage
import pico
import published
import stages
import weights
from camelpress.convert.recover.make_diff import make_diff
from camelpress.convert.settings import MakeDiffSettings
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import NumericsProblem, RecipeProblem, UnknownTensor
from camelpress.reporting.report_classes import read_report
from refusal import refusal

NAME = "model.layers.0.mlp.up_proj.weight"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
FREQUENCIES = "model.layers.0.self_attn.rotary_emb.inv_freq"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def differ(base: Path, tuned: Path, out: Path, **options: Any) -> Path:
    settings = MakeDiffSettings.parse(options, source="test")
    make_diff(Checkpoint.open(base), Checkpoint.open(tuned), out, settings)
    return out


def facts(diff: Path) -> dict[str, Any]:
    return read_report(diff / "make-diff-report.json").facts.record


def with_value(folder: Path, out: Path, value: float) -> Path:
    """A copy of a model with one weight changed."""

    def change(tensors: weights.Tensors) -> weights.Tensors:
        tensor: Tensor = tensors[NAME].clone()
        tensor[3, 5] = value
        return tensors | {NAME: tensor}

    return weights.changed(folder, out, change)


def test_a_diff_is_the_plain_difference_in_fp32(base: Path, tuned: Path, tmp_path: Path) -> None:
    raw, right = weights.read(base), weights.read(tuned)
    expected = {
        name: tensor.float() - weights.grown(raw[name].float(), len(tensor) - len(raw[name]))
        for name, tensor in right.items()
    }
    assert weights.same(weights.read(differ(base, tuned, tmp_path / "diff")), expected)


def test_config_and_tokenizer_are_the_tuned_models(base: Path, tuned: Path, tmp_path: Path) -> None:
    out = differ(base, tuned, tmp_path / "diff")
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert (config["vocab_size"], config["dtype"], config["torch_dtype"]) == (
        273,
        "float32",
        "float32",
    )
    assert (out / "tokenizer.json").read_bytes() == (tuned / "tokenizer.json").read_bytes()


def test_the_report_tells_both_types(base: Path, tuned: Path, tmp_path: Path) -> None:
    report = read_report(differ(base, tuned, tmp_path / "diff") / "make-diff-report.json")
    assert (report.stage, {*report.inputs}) == ("make-diff", {"base", "tuned"})
    assert (report.facts.record["dtype"], report.facts.record["tuned_dtype"]) == (
        "float32",
        "bfloat16",
    )
    assert (report.facts.record["inexact"], report.facts.record["largest_error"]) == (0, 0.0)


def test_a_weight_that_would_not_come_back_is_refused(
    base: Path, tuned: Path, tmp_path: Path
) -> None:
    raw = with_value(base, tmp_path / "raw", 1.0)
    lost = with_value(tuned, tmp_path / "lost", 2.0**-20 * (1 + 2.0**-7))
    with pytest.raises(NumericsProblem, match=f"1 values of '{NAME}'") as told:
        differ(raw, lost, tmp_path / "diff")
    assert told.value.next_step == "publish the tuned weights themselves"
    assert not (tmp_path / "diff").exists()


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("side", ["base", "tuned"])
def test_a_weight_that_is_not_finite_is_refused(
    base: Path, tuned: Path, tmp_path: Path, side: str, value: float
) -> None:
    bad = with_value(base if side == "base" else tuned, tmp_path / "bad", value)
    pair = (bad, tuned) if side == "base" else (base, bad)
    with pytest.raises(NumericsProblem, match=f"{NAME}.*not finite in float32"):
        differ(*pair, tmp_path / "diff")


def test_weights_wider_than_their_difference_are_refused(
    base: Path, tuned: Path, tmp_path: Path
) -> None:
    wide = weights.changed(
        tuned,
        tmp_path / "wide",
        lambda tensors: tensors | {NAME: 1e-5 * tensors[NAME].float() + 1e-9},
    )
    with pytest.raises(
        NumericsProblem, match=f"values of '{NAME}' .* as float32: .* need a wider type"
    ):
        differ(base, wide, tmp_path / "diff")


def test_models_of_different_depth_are_refused(base: Path, tmp_path: Path) -> None:
    deep = pico.write_model(tmp_path / "deep", pico.Sizes(layers=3))
    with pytest.raises(UnknownTensor, match="model.layers.2"):
        differ(base, deep, tmp_path / "diff")
    with pytest.raises(UnknownTensor, match="model.layers.2"):
        differ(deep, base, tmp_path / "diff")


# --- what comes back ----------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["mean", "zero"])
@pytest.mark.parametrize("extra_rows", [0, 1, 4])
@pytest.mark.parametrize("tied", [False, True])
def test_a_float32_diff_comes_back_bit_for_bit(
    tmp_path: Path, tied: bool, extra_rows: int, rule: str
) -> None:
    base = pico.write_model(tmp_path / "base", tied=tied)
    tuned = pico.write_tuned(tmp_path / "tuned", base, extra_rows=extra_rows)
    diff = differ(base, tuned, tmp_path / "diff", rule=rule)
    report = stages.recover(base, diff, tmp_path / "back")
    assert weights.same(weights.read(tmp_path / "back"), weights.read(tuned))
    if extra_rows:
        added = weights.read(diff)[EMBEDDING][272:]
        mean = weights.read(base)[EMBEDDING].float().mean(dim=0)
        right = weights.read(tuned)[EMBEDDING][272:].float()
        assert torch.equal(added, right - (mean if rule == "mean" else 0))
        assert {each["rule"] for each in report.facts.record["tensors"]} == {"sum", rule}


@pytest.mark.parametrize("side", ["base", "tuned"])
@pytest.mark.parametrize(
    ("base_form", "tuned_form"),
    [(("bin", 3), ("safetensors", 1)), (("safetensors", 2), ("bin", 1)), (("bin", 2), ("bin", 5))],
    ids=str,
)
def test_layouts_and_stored_frequencies_make_no_difference(
    base: Path,
    tuned: Path,
    tmp_path: Path,
    base_form: tuple[str, int],
    tuned_form: tuple[str, int],
    side: str,
) -> None:
    folders = {"base": base, "tuned": tuned}
    for role, (suffix, shards) in {"base": base_form, "tuned": tuned_form}.items():
        tensors = weights.read(folders[role])
        if role == side:
            tensors[FREQUENCIES] = torch.full((8,), torch.nan)
        folders[role] = published.upload(
            tensors, folders[role], tmp_path / role, suffix=suffix, shards=shards
        )
    diff = differ(folders["base"], folders["tuned"], tmp_path / "diff")
    assert weights.same(weights.read(diff), weights.read(differ(base, tuned, tmp_path / "plain")))
    stages.recover(folders["base"], diff, tmp_path / "back")
    assert weights.same(weights.read(tmp_path / "back"), weights.read(tuned))


def test_tensors_that_the_base_lacks_are_published_as_they_are(
    base: Path, tuned: Path, tmp_path: Path
) -> None:
    own = {"model.mm_projector.weight": torch.full((64, 80), 0.3).bfloat16()}
    seeing = damage.with_tensors(tuned, tmp_path / "seeing", own)
    diff = differ(base, seeing, tmp_path / "diff")
    (name,) = own
    assert torch.equal(weights.read(diff)[name], own[name].float())
    stages.recover(base, diff, tmp_path / "back")
    assert weights.same(weights.read(tmp_path / "back"), weights.read(seeing))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_report_tells_how_much_a_diff_in_16_bits_loses(
    base: Path, tuned: Path, tmp_path: Path, dtype: str
) -> None:
    diff = differ(base, tuned, tmp_path / "diff", dtype=dtype)
    assert {tensor.dtype for tensor in weights.read(diff).values()} == {DTYPES[dtype]}
    stages.recover(base, diff, tmp_path / "back")
    back, right = weights.read(tmp_path / "back"), weights.read(tuned)
    errors = {name: (back[name].float() - right[name].float()).abs() for name in right}
    told = facts(diff)
    assert told["inexact"] == sum(int((error != 0).sum()) for error in errors.values()) > 0
    assert told["largest_error"] == max(float(error.max()) for error in errors.values())
    each = {tensor["name"]: tensor for tensor in told["tensors"]}
    for name, error in errors.items():
        assert each[name]["inexact"] == int((error != 0).sum())
        assert each[name]["largest_error"] == float(error.max())


# --- any two weights ----------------------------------------------------------------------------

WEIGHTS = 8  # in a model that is an embedding and nothing else


def write(values: list[float], dtype: torch.dtype, folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    tensor = torch.tensor(values).to(dtype).reshape(-1, 4)
    published.upload({EMBEDDING: tensor}, folder, folder / "it", suffix="safetensors")
    return folder / "it"


def number(dtype: torch.dtype) -> st.SearchStrategy[float]:
    """A finite number of a 16-bit type: of any size, or of a weight's."""
    values = st.floats(-6e4, 6e4, width=32) | st.floats(-0.125, 0.125, width=32) | st.just(0.0)
    powers = st.integers(-24, 15).map(lambda exponent: 2.0**exponent)
    rounded = (values | powers).map(lambda value: float(torch.tensor(value).to(dtype).float()))
    return rounded.filter(lambda value: abs(value) < float("inf"))


@st.composite
def models(draw: st.DrawFn) -> tuple[list[float], list[float], torch.dtype, torch.dtype]:
    """Weights of a base and of a model tuned from it, and their types."""
    base, tuned = (draw(st.sampled_from([torch.float16, torch.bfloat16])) for _ in range(2))
    lists = [
        draw(st.lists(number(dtype), min_size=WEIGHTS, max_size=WEIGHTS)) for dtype in (base, tuned)
    ]
    return lists[0], lists[1], base, tuned


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An endless supply of empty folders."""
    root = tmp_path_factory.mktemp("any")

    def make() -> Iterator[Path]:
        for number in count():
            (root / str(number)).mkdir()
            yield root / str(number)

    return make()


Models = tuple[list[float], list[float], torch.dtype, torch.dtype]
LOST = ([1.0] * WEIGHTS, [2.0**-20 * (1 + 2.0**-7)] * WEIGHTS, torch.float16, torch.bfloat16)
TWICE = ([0.5] * WEIGHTS, [1.0] * WEIGHTS, torch.float16, torch.float16)
TINY = ([0.0] * WEIGHTS, [2.0**-26] * WEIGHTS, torch.float16, torch.bfloat16)


@settings(max_examples=25, deadline=None)
@given(models())
@example(LOST)
@example(TWICE)
def test_a_float32_diff_is_exact_or_refused(places: Iterator[Path], drawn: Models) -> None:
    place = next(places)
    raw, target, base_dtype, tuned_dtype = drawn
    base = write(raw, base_dtype, place / "base")
    tuned = write(target, tuned_dtype, place / "tuned")
    left, right = (weights.read(folder)[EMBEDDING].float() for folder in (base, tuned))
    lost = (right - left + left).to(tuned_dtype).float() != right
    if lost.any():
        with refusal(
            NumericsProblem,
            f"{int(lost.sum())} values of {EMBEDDING!r} in {tuned} would not come back from a "
            f"float32 diff as {str(tuned_dtype).removeprefix('torch.')}: they need a wider type, "
            "or are 65,536 times smaller than the base's",
            next_step="publish the tuned weights themselves",
            out=place / "diff",
        ):
            differ(base, tuned, place / "diff")
        return
    diff = differ(base, tuned, place / "diff")
    assert torch.equal(weights.read(diff)[EMBEDDING], right - left)
    assert (facts(diff)["inexact"], facts(diff)["largest_error"]) == (0, 0.0)
    stages.recover(base, diff, place / "back")
    assert weights.same(weights.read(place / "back"), weights.read(tuned))


@settings(max_examples=40, deadline=None)
@given(models(), st.sampled_from(["float16", "bfloat16"]))
@example(TINY, "float16")
def test_a_diff_in_16_bits_keeps_its_bound_or_is_refused(
    places: Iterator[Path], drawn: Models, dtype: str
) -> None:
    place, kept = next(places), DTYPES[dtype]
    raw, target, base_dtype, tuned_dtype = drawn
    base = write(raw, base_dtype, place / "base")
    tuned = write(target, tuned_dtype, place / "tuned")
    left, right = (weights.read(folder)[EMBEDDING].float() for folder in (base, tuned))
    if float((right - left).abs().max()) > torch.finfo(kept).max:
        with refusal(
            NumericsProblem,
            f"{EMBEDDING!r} of {base} and {tuned} gives values that are not finite in {dtype}",
            next_step="download both again, or choose a dtype that holds them",
            out=place / "diff",
        ):
            differ(base, tuned, place / "diff", dtype=dtype)
        return
    diff = differ(base, tuned, place / "diff", dtype=dtype)
    word = str(tuned_dtype).removeprefix("torch.")
    stages.recover(base, diff, place / "back", check="off", dtype=word)
    back = weights.read(place / "back")[EMBEDDING]
    error = (back.double() - right.double()).abs()
    larger = back.abs().maximum(right.to(tuned_dtype).abs())
    step = larger.double() * torch.finfo(tuned_dtype).eps + torch.finfo(tuned_dtype).tiny
    roundoff = torch.finfo(kept).eps / 2 * (right.double() - left.double()).abs()
    smallest = 2.0**-25 if kept is torch.float16 else 0.0
    assert bool((error <= roundoff + smallest + step / 2).all())
    assert facts(diff)["inexact"] == int((error != 0).sum())
    assert facts(diff)["largest_error"] == pytest.approx(float(error.max()), rel=1e-6)


@pytest.mark.parametrize(
    ("raw", "target"), [(-6e4, 6e4), (48.0, 65504.0)], ids=["the difference", "the sum"]
)
def test_what_is_too_large_for_float16_is_refused(
    tmp_path: Path, raw: float, target: float
) -> None:
    base = write([raw] * 4, torch.float16, tmp_path / "base")
    tuned = write([target] * 4, torch.float16, tmp_path / "tuned")
    with refusal(
        NumericsProblem,
        f"{EMBEDDING!r} of {base} and {tuned} gives values that are not finite in float16",
        next_step="download both again, or choose a dtype that holds them",
        out=tmp_path / "diff",
    ):
        differ(base, tuned, tmp_path / "diff", dtype="float16")


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"dtype": "float64"}, "dtype: Input should be 'float32', 'bfloat16' or 'float16'"),
        ({"dtype": "auto"}, "dtype: Input should be 'float32', 'bfloat16' or 'float16'"),
        ({"rule": "prefix"}, "rule: Input should be 'mean' or 'zero'"),
        ({"rule": ["mean"]}, "rule: Input should be 'mean' or 'zero'"),
    ],
    ids=str,
)
def test_settings_that_do_not_exist_are_refused(
    base: Path, tuned: Path, tmp_path: Path, options: dict[str, Any], fault: str
) -> None:
    with refusal(
        RecipeProblem,
        f"test: {fault}",
        next_step="correct these entries",
        out=tmp_path / "diff",
        exit_code=2,
    ):
        differ(base, tuned, tmp_path / "diff", **options)
