"""A diff is exact, or it is not made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import pico
import weights
from camelpress.convert.run import make_diff
from camelpress.convert.settings import MakeDiff
from camelpress.core.checkpoint import Checkpoint
from camelpress.core.errors import NumericsProblem, UnknownTensor
from camelpress.core.report import Report

NAME = "model.layers.0.mlp.up_proj.weight"


def differ(base: Path, tuned: Path, out: Path) -> Path:
    make_diff(Checkpoint.open(base), Checkpoint.open(tuned), out, MakeDiff())
    return out


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
    report = Report.read(differ(base, tuned, tmp_path / "diff") / "make-diff-report.json")
    assert (report.stage, {*report.inputs}) == ("make-diff", {"base", "tuned"})
    assert (report.facts["dtype"], report.facts["tuned_dtype"]) == ("float32", "bfloat16")


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
    with pytest.raises(
        NumericsProblem, match=f"{NAME}.*not finite in float32"
    ):
        differ(*pair, tmp_path / "diff")


def test_weights_wider_than_the_model_are_refused(base: Path, tuned: Path, tmp_path: Path) -> None:
    norm = "model.norm.weight"
    mixed = weights.changed(
        tuned, tmp_path / "mixed", lambda tensors: tensors | {norm: tensors[norm].float() + 1e-7}
    )
    with pytest.raises(
        NumericsProblem, match=f"values of '{norm}' .* as bfloat16: .* need a wider type"
    ):
        differ(base, mixed, tmp_path / "diff")


def test_models_of_different_depth_are_refused(base: Path, tmp_path: Path) -> None:
    deep = pico.write_model(tmp_path / "deep", pico.Sizes(layers=3))
    with pytest.raises(UnknownTensor, match="model.layers.2"):
        differ(base, deep, tmp_path / "diff")
    with pytest.raises(UnknownTensor, match="model.layers.2"):
        differ(deep, base, tmp_path / "diff")
