"""Tensors of a shape that does not belong to the other checkpoint or to the config."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import damage
import pico
import stages
from camelpress.core.errors import CheckpointProblem, ShapeMismatch, UnknownTensor
from refusal import refusal

EMBEDDING = "model.embed_tokens.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"
KEY = "model.layers.0.self_attn.k_proj.weight"
NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        (DOWN, (96, 64), [64, 96]),
        (DOWN, (64,), [64, 96]),
        (DOWN, (65, 96), [64, 96]),
        (KEY, (64, 64), [32, 64]),
        (NORM, (), [64]),
        (NORM, (1, 64), [64]),
        (EMBEDDING, (271, 64), [272, 64]),
        (EMBEDDING, (273, 65), [272, 64]),
    ],
)
def test_a_diff_of_another_shape_is_refused(
    base: Path, diff: Path, tmp_path: Path, out: Path, name: str, shape: tuple[int, ...],
    expected: list[int],
) -> None:  # fmt: skip
    broken = damage.with_tensors(diff, tmp_path / "broken", {name: torch.zeros(shape)})
    with refusal(
        ShapeMismatch,
        f"{name!r} is {list(shape)} in {broken} but {expected} in {base}",
        next_step="give the base that the diff was made from",
        out=out,
    ):
        stages.recover(base, broken, out)


def test_a_tensor_that_only_the_diff_has_is_refused(
    base: Path, diff: Path, tmp_path: Path, out: Path
) -> None:
    name = "model.layers.0.self_attn.q_proj.bias"
    broken = damage.with_tensors(diff, tmp_path / "broken", {name: torch.zeros(64)})
    with refusal(
        UnknownTensor,
        f"{broken} holds {name!r}, which the base {base} lacks",
        next_step="give a base and a diff of the same architecture; or, if it is no difference, "
        f"--rule {name}=absolute",
        out=out,
    ):
        stages.recover(base, broken, out)


def test_a_tensor_that_only_the_base_has_is_refused(
    base: Path, diff: Path, tmp_path: Path, out: Path
) -> None:
    broken = damage.with_tensors(diff, tmp_path / "broken", {NORM: None})
    with refusal(
        UnknownTensor,
        f"{broken} lacks {NORM!r}, which the base {base} holds (1 such tensors)",
        next_step="give a base and a diff of the same architecture",
        out=out,
    ):
        stages.recover(base, broken, out)


def test_weights_that_contradict_the_config_are_not_quantized(
    base: Path, chat: Path, tmp_path: Path, out: Path
) -> None:
    broken = damage.with_config(base, tmp_path / "broken", intermediate_size=128)
    name = "model.layers.0.mlp.gate_proj.weight"
    with refusal(
        CheckpointProblem,
        f"{broken} holds {name!r} as (96, 64), its config.json asks for (128, 64)",
        next_step="use the config that belongs to these weights",
        out=out,
    ):
        stages.quantize(broken, out, chat)


def test_packed_weights_that_contradict_the_config_are_not_scored(
    base: Path, packed: Path, chat: Path, tmp_path: Path, out: Path
) -> None:
    broken = damage.with_config(packed, tmp_path / "broken", intermediate_size=128)
    name = "model.layers.0.mlp.gate_proj.weight"
    with refusal(
        CheckpointProblem,
        f"{broken} holds {name!r} as (96, 64), its config.json asks for (128, 64)",
        next_step="use the config that belongs to these weights",
        out=out,
    ):
        stages.validate(base, broken, out, chat)


def test_another_number_of_bits_than_was_packed_is_not_scored(
    base: Path, packed: Path, chat: Path, tmp_path: Path, out: Path
) -> None:
    quantization = {"quant_method": "gptq", "bits": 8, "checkpoint_format": "gptq"}
    broken = damage.with_config(packed, tmp_path / "broken", quantization_config=quantization)
    name = "model.layers.0.self_attn.q_proj.qweight"
    with refusal(
        ShapeMismatch,
        f"{broken} holds {name!r} as [8, 64], its scales and g_idx ask for [16, 64]",
        next_step="download or quantize the checkpoint again",
        out=out,
    ):
        stages.validate(base, broken, out, chat)


def test_models_that_do_not_share_the_ids_of_a_text_are_not_compared(
    base: Path, chat: Path, tmp_path: Path, out: Path
) -> None:
    small = pico.write_model(tmp_path / "small", pico.PICO._replace(vocab=60))
    with refusal(
        CheckpointProblem,
        re.compile(
            rf"the text has id \d+ by the tokenizer of {base}, and both models share only 60 ids"
        ),
        next_step="compare models with the same vocabulary",
        out=out,
    ):
        stages.validate(base, small, out, chat)


def test_a_tokenizer_that_knows_more_than_the_model_is_refused(
    chat: Path, tmp_path: Path, out: Path
) -> None:
    small = pico.write_model(tmp_path / "small", pico.PICO._replace(vocab=64))
    with refusal(
        CheckpointProblem,
        re.compile(re.escape(f"{small} embeds 64 tokens, the text has id ") + r"\d+"),
        next_step="use the tokenizer that belongs to this model",
        out=out,
    ):
        stages.quantize(small, out, chat)
