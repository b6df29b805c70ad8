"""A layer that keeps too little of its output is a failure by name, however small it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import damage
import gptq_reader
import pico
import stages
from camelpress.core.errors import NumericsProblem
from camelpress.core.packing.row_loss import weight_loss
from camelpress.quantize.solver.loss_limits import LOSS_LIMITS, LayersLost, exceeds_loss_limit
from camelpress.reporting.stage_report import Report
from command import Run
from refusal import refusal, starting

SHALLOW = pico.Sizes(layers=1)
UP, DOWN = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"
VALUE, OUTPUT = "model.layers.0.self_attn.v_proj", "model.layers.0.self_attn.o_proj"
NEXT = "keep these layers in 16 bits (quantize.modules), use more bits, or raise --max-fallbacks"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One block of fp32 weights."""
    folder = tmp_path_factory.mktemp("plain") / "model"
    return pico.write_model(folder, SHALLOW, dtype=torch.float32)


def scaled(source: Path, out: Path, factor: float) -> Path:
    """Returns the same function with small weights in up and v, and large ones after them."""
    tensors = load_file(source / "model.safetensors")
    for small, large in ((UP, DOWN), (VALUE, OUTPUT)):
        tensors[f"{small}.weight"] *= factor
        tensors[f"{large}.weight"] /= factor
    return damage.with_tensors(source, out, tensors)


def with_layer(source: Path, out: Path, change: Callable[[Tensor], Tensor]) -> Path:
    weight = load_file(source / "model.safetensors")[f"{UP}.weight"]
    return damage.with_tensors(source, out, {f"{UP}.weight": change(weight)})


def facts(report: Report) -> dict[str, dict[str, Any]]:
    return {layer["name"]: layer for layer in report.facts.record["layers"]}


@pytest.mark.parametrize("method", ["gptq", "rtn"])
@pytest.mark.parametrize("factor", [2.0**-10, 2.0**-14, 2.0**-17])
def test_small_weights_keep_as_much_as_others(
    plain: Path, chat: Path, tmp_path: Path, factor: float, method: str
) -> None:
    texts = (chat,) if method == "gptq" else ()
    usual = stages.quantize(plain, tmp_path / "usual", *texts, method=method)
    small = scaled(plain, tmp_path / "model", factor)
    found = stages.quantize(small, tmp_path / "small", *texts, method=method)
    assert found.facts.record["lost"] == 0
    for name in (UP, VALUE):
        assert facts(found)[name]["loss"] < 1.5 * facts(usual)[name]["loss"]
        weight = load_file(small / "model.safetensors")[f"{name}.weight"]
        stored = gptq_reader.dequantize(gptq_reader.tensors(tmp_path / "small"), name, 4)
        assert weight_loss(weight, torch.from_numpy(stored)) < 0.05


@pytest.mark.parametrize("method", ["gptq", "rtn"])
@pytest.mark.parametrize("factor", [1e-8, 1e-12, 1e-25])
def test_weights_that_no_scale_fits_are_a_failure_by_name(
    plain: Path, chat: Path, tmp_path: Path, factor: float, method: str
) -> None:
    small = with_layer(plain, tmp_path / "model", lambda weight: weight * factor)
    texts = (chat,) if method == "gptq" else ()
    with refusal(
        LayersLost,
        starting(f"too much of the output is lost in {UP} ("),
        next_step=NEXT,
        out=None,
    ):
        stages.quantize(small, tmp_path / "out", *texts, method=method)
    assert not (tmp_path / "out").exists()
    allowed = stages.quantize(small, tmp_path / "out", *texts, method=method, max_fallbacks=1)
    assert allowed.facts.record["lost"] == 1
    assert facts(allowed)[UP]["lost"]
    assert facts(allowed)[UP]["loss"] > 0.5


def test_the_command_line_ends_with_3_and_counts_what_is_allowed(
    plain: Path, tmp_path: Path, run: Run
) -> None:
    small = with_layer(plain, tmp_path / "model", lambda weight: weight * 1e-9)
    arguments = ["quantize", str(small), str(tmp_path / "out"), "--method", "rtn"]
    arguments += ["--group-size", "32"]
    refused = run(*arguments)
    assert refused.code == 3
    assert UP in refused.err
    allowed = run(*arguments, "--max-fallbacks", "1")
    assert allowed.code == 0
    assert "1 lost: their error is beyond the limit" in " ".join(allowed.out.split())


def half_tiny(weight: Tensor) -> Tensor:
    return torch.cat([weight[::2] * 1e-10, weight[1::2]])


def test_rows_count_alike_however_small_they_are(plain: Path, tmp_path: Path) -> None:
    folder = with_layer(plain, tmp_path / "model", half_tiny)
    with pytest.raises(NumericsProblem, match=f"is lost in {UP} \\(50%\\)"):
        stages.quantize(folder, tmp_path / "out", method="rtn")


def zeros(weight: Tensor) -> Tensor:
    return weight * 0


def dead_row(weight: Tensor) -> Tensor:
    weight[3] = 0
    return weight


def tiny_row(weight: Tensor) -> Tensor:
    weight[3] *= 1e-12
    return weight


def huge_row(weight: Tensor) -> Tensor:
    weight[3] *= 1e4
    return weight


def tiny_groups(weight: Tensor) -> Tensor:
    weight[:, :32] *= 1e-9
    return weight


@pytest.mark.parametrize("change", [zeros, dead_row, tiny_row, huge_row, tiny_groups])
@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_what_costs_next_to_nothing_is_no_failure(
    plain: Path, chat: Path, tmp_path: Path, change: Callable[[Tensor], Tensor], method: str
) -> None:
    folder = with_layer(plain, tmp_path / "model", change)
    texts = (chat,) if method == "gptq" else ()
    report = stages.quantize(folder, tmp_path / "out", *texts, method=method)
    assert report.facts.record["lost"] == 0
    if change is zeros:
        assert facts(report)[UP]["loss"] == 0


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [32, -1])
@pytest.mark.parametrize("sym", [True, False])
def test_few_bits_alone_are_no_failure(
    plain: Path, tmp_path: Path, bits: int, group_size: int, sym: bool
) -> None:
    report = stages.quantize(
        plain, tmp_path / "out", method="rtn", bits=bits, group_size=group_size, sym=sym
    )
    assert max(layer["loss"] for layer in report.facts.record["layers"]) < LOSS_LIMITS[bits] / 2


def test_a_loss_that_is_no_number_is_beyond_every_limit() -> None:
    assert all(exceeds_loss_limit(float("nan"), bits) for bits in LOSS_LIMITS)


@pytest.mark.parametrize("name", ["model.norm.weight", "lm_head.weight"])
def test_a_plain_tensor_that_vanishes_in_fp16_is_refused(
    plain: Path, tmp_path: Path, name: str
) -> None:
    tensor = load_file(plain / "model.safetensors")[name]
    folder = damage.with_tensors(plain, tmp_path / "model", {name: tensor * 1e-9})
    with pytest.raises(NumericsProblem, match=f"'{name}' of .* loses 100% in float16"):
        stages.quantize(folder, tmp_path / "out", method="rtn")


def test_a_few_rows_of_untrained_tokens_may_vanish(plain: Path, tmp_path: Path) -> None:
    name = "model.embed_tokens.weight"
    tensor = load_file(plain / "model.safetensors")[name]
    tensor[-2:] *= 1e-12
    folder = damage.with_tensors(plain, tmp_path / "model", {name: tensor})
    assert stages.quantize(folder, tmp_path / "out", method="rtn").facts.record["lost"] == 0
