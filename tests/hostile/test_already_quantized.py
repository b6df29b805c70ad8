"""Checkpoints that are quantized already, or that do not say that they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import damage
import stages
from camelpress.core.checkpoint.format_detection import READABLE_FORMATS
from camelpress.core.errors import CheckpointProblem
from camelpress.reporting.stage_report import Report
from refusal import refusal

Stage = Callable[[Path], Report]


def test_a_quantized_model_is_not_quantized_again(packed: Path, chat: Path, out: Path) -> None:
    with refusal(
        CheckpointProblem,
        f"{packed} is already quantized",
        next_step="give the 16-bit checkpoint",
        out=out,
    ):
        stages.quantize(packed, out, chat)


@pytest.mark.parametrize("side", ["base", "diff"])
def test_a_quantized_model_is_neither_base_nor_diff(
    base: Path, diff: Path, packed: Path, out: Path, side: str
) -> None:
    inputs = (packed, diff) if side == "base" else (base, packed)
    with refusal(
        CheckpointProblem,
        f"{packed} is quantized",
        next_step="give the 16-bit checkpoint",
        out=out,
    ):
        stages.recover(*inputs, out)


def test_packed_weights_that_no_config_explains_are_refused(
    stage: Stage, packed: Path, tmp_path: Path, out: Path
) -> None:
    broken = damage.with_config(packed, tmp_path / "broken", quantization_config=None)
    with refusal(
        CheckpointProblem,
        f"{broken} holds packed weights, but its config.json has no quantization_config",
        next_step="copy the object in quantize_config.json into config.json as "
        'quantization_config, with "quant_method": "gptq" if it has none',
        out=out,
    ):
        stage(broken)


@pytest.mark.parametrize("method", ["awq", "bitsandbytes"])
def test_another_quantization_is_not_scored(
    base: Path, packed: Path, chat: Path, tmp_path: Path, out: Path, method: str
) -> None:
    config = {"quant_method": method, "bits": 4}
    broken = damage.with_config(packed, tmp_path / "broken", quantization_config=config)
    with refusal(
        CheckpointProblem,
        f"{broken} is quantized as {method}",
        next_step=f"give a checkpoint of {READABLE_FORMATS}",
        out=out,
    ):
        stages.validate(base, broken, out, chat)
