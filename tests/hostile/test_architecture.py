"""Models of another family."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import damage
import stages
from camelpress.core.errors import CheckpointProblem, UnknownTensor
from refusal import refusal, starting

RUNS: dict[str, Callable[[Path, Path, Path, Path], object]] = {
    "quantize": lambda broken, _, text, out: stages.quantize(broken, out, text),
    "reference": lambda broken, base, text, out: stages.validate(broken, base, out, text),
    "candidate": lambda broken, base, text, out: stages.validate(base, broken, out, text),
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS.keys())
@pytest.mark.parametrize("kind", ["gpt2", "mixtral", None, "../llama"])
def test_another_architecture_is_refused(
    base: Path, chat: Path, tmp_path: Path, out: Path, kind: str | None,
    run: Callable[[Path, Path, Path, Path], object],
) -> None:  # fmt: skip
    broken = damage.with_config(base, tmp_path / "broken", model_type=kind)
    with refusal(
        CheckpointProblem,
        f"{broken} is of the architecture {str(kind)!r}",
        next_step="use one that is supported: llama, mistral, qwen2",
        out=out,
    ):
        run(broken, base, chat, out)


def test_weights_with_names_of_another_family_are_not_added(tmp_path: Path, out: Path) -> None:
    for name in ("base", "diff"):
        folder = tmp_path / name
        folder.mkdir()
        save_file({"wte.weight": torch.zeros(4, 4)}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with refusal(
        UnknownTensor,
        f"{tmp_path / 'base'} lacks the tensor 'model.embed_tokens.weight'",
        next_step="check that the folder is complete and of the expected model",
        out=out,
    ):
        stages.recover(tmp_path / "base", tmp_path / "diff", out)


@pytest.mark.parametrize(
    "changed",
    [
        {"num_attention_heads": "four"},
        {"num_attention_heads": 0},
        {"hidden_act": "no such function"},
        {"intermediate_size": -1},
        {"rope_parameters": {"rope_type": "no such type"}},
    ],
)
def test_a_config_that_makes_no_model_is_refused(
    base: Path, chat: Path, tmp_path: Path, out: Path, changed: dict[str, object]
) -> None:
    broken = damage.with_config(base, tmp_path / "broken", **changed)
    with refusal(
        CheckpointProblem,
        starting(f"{broken / 'config.json'} is not usable ("),
        next_step="compare it with the config of the original model",
        out=out,
    ):
        stages.quantize(broken, out, chat)
