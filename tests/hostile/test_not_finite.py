"""Weights that are infinite or no numbers at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import damage
import stages
from camelpress.core.errors import NumericsProblem
from refusal import refusal

EMBEDDING = "model.embed_tokens.weight"
NORM = "model.norm.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"
NOT_FINITE = [float("nan"), float("inf"), float("-inf")]
PLAIN = [EMBEDDING, NORM, "lm_head.weight", "model.layers.0.input_layernorm.weight"]

NEXT = "download both again, or choose a dtype that holds them"


def spoiled(folder: Path, out: Path, name: str, value: float) -> Path:
    tensor = load_file(folder / "model.safetensors")[name]
    return damage.with_tensors(folder, out, {name: damage.spoiled(tensor, value)})


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("name", [DOWN, NORM])
@pytest.mark.parametrize("side", ["base", "diff"])
def test_a_sum_that_is_not_finite_is_not_recovered(
    base: Path, diff: Path, tmp_path: Path, out: Path, side: str, name: str, value: float
) -> None:
    inputs = {"base": base, "diff": diff}
    inputs[side] = spoiled(inputs[side], tmp_path / "broken", name, value)
    with refusal(
        NumericsProblem,
        f"{name!r} of {inputs['base']} and {inputs['diff']} gives values that are not finite",
        next_step="download both again",
        out=out,
    ):
        stages.recover(inputs["base"], inputs["diff"], out)


def test_a_sum_too_large_for_the_dtype_is_not_recovered(
    base: Path, diff: Path, tmp_path: Path, out: Path
) -> None:
    broken = spoiled(diff, tmp_path / "broken", DOWN, 1e5)
    with refusal(
        NumericsProblem,
        f"{DOWN!r} of {base} and {broken} gives values that are not finite in float16",
        next_step=NEXT,
        out=out,
    ):
        stages.recover(base, broken, out, dtype="float16")


@pytest.mark.parametrize("value", NOT_FINITE)
def test_no_diff_is_made_of_weights_that_are_not_finite(
    base: Path, tuned: Path, tmp_path: Path, out: Path, value: float
) -> None:
    broken = spoiled(tuned, tmp_path / "broken", NORM, value)
    with refusal(
        NumericsProblem,
        f"{NORM!r} of {base} and {broken} gives values that are not finite in float32",
        next_step=NEXT,
        out=out,
    ):
        stages.make_diff(base, broken, out)


@pytest.mark.parametrize("method", ["gptq", "rtn"])
@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_layer_that_is_not_finite_is_not_quantized(
    base: Path, chat: Path, tmp_path: Path, out: Path, method: str, value: float
) -> None:
    broken = spoiled(base, tmp_path / "broken", DOWN, value)
    with refusal(
        NumericsProblem,
        f"{broken}: {DOWN!r} holds 1 values that are not finite",
        next_step="download or recover the checkpoint again",
        out=out,
    ):
        stages.quantize(broken, out, chat, method=method)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("value", [float("nan"), 1e30])
def test_what_16_bits_cannot_hold_is_not_quantized(
    tuned: Path, chat: Path, tmp_path: Path, out: Path, name: str, value: float
) -> None:
    broken = spoiled(tuned, tmp_path / "broken", name, value)
    with refusal(
        NumericsProblem,
        f"{name!r} of {broken} has values that are not finite in torch.float16",
        next_step="recover the checkpoint again, or check it for overflow",
        out=out,
    ):
        stages.quantize(broken, out, chat)


@pytest.mark.parametrize("name", [DOWN, NORM, "lm_head.weight"])
@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_a_model_that_is_not_finite_is_not_scored(
    base: Path, chat: Path, tmp_path: Path, out: Path, side: str, name: str
) -> None:
    broken = spoiled(base, tmp_path / "broken", name, float("nan"))
    models = (broken, base) if side == "reference" else (base, broken)
    with refusal(
        NumericsProblem,
        f"{broken}: {name!r} holds 1 values that are not finite",
        next_step="download or recover the checkpoint again",
        out=out,
    ):
        stages.validate(*models, out, chat)


@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_an_embedding_that_is_not_finite_is_not_scored(
    base: Path, chat: Path, tmp_path: Path, out: Path, side: str
) -> None:
    table = load_file(base / "model.safetensors")[EMBEDDING]
    changed = {EMBEDDING: torch.full_like(table, float("nan"))}
    broken = damage.with_tensors(base, tmp_path / "broken", changed)
    models = (broken, base) if side == "reference" else (base, broken)
    with refusal(
        NumericsProblem,
        f"{broken}: {EMBEDDING!r} holds {table.numel()} values that are not finite",
        next_step="download or recover the checkpoint again",
        out=out,
    ):
        stages.validate(*models, out, chat)


@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_packed_layer_with_a_scale_that_is_not_finite_is_not_scored(
    base: Path, packed: Path, chat: Path, tmp_path: Path, out: Path, value: float
) -> None:
    linear = DOWN.removesuffix(".weight")
    scales = torch.full((3, 64), value, dtype=torch.float16)
    broken = damage.with_tensors(packed, tmp_path / "broken", {f"{linear}.scales": scales})
    with refusal(
        NumericsProblem,
        f"{broken}: {DOWN!r} holds 6144 values that are not finite",
        next_step="download or recover the checkpoint again",
        out=out,
    ):
        stages.validate(base, broken, out, chat)
