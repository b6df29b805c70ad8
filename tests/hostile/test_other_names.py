"""Tensors under the names of a model around the model, or of no model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import damage
from camelpress.core.errors import UnknownTensor

Refused = Callable[..., None]

EMBEDDING = "model.embed_tokens.weight"


def renamed(folder: Path, out: Path, change: Callable[[str], str]) -> Path:
    damage.copied(folder, out)
    tensors = load_file(out / "model.safetensors")
    save_file(
        {change(name): tensor for name, tensor in tensors.items()},
        out / "model.safetensors",
        metadata={"format": "pt"},
    )
    return out


@pytest.mark.parametrize("prefix", ["transformer.", "language_model.", "module.llm."])
def test_a_diff_under_another_prefix_is_refused(
    base: Path, diff: Path, tmp_path: Path, refused: Refused, prefix: str
) -> None:
    broken = renamed(diff, tmp_path / "broken", lambda name: prefix + name)
    refused(
        base,
        broken,
        UnknownTensor,
        f"{broken} names its tensors {prefix}*, which no published diff does",
        next_step="rename them: they begin with backbone_model. or with model.",
    )


def test_a_base_under_another_prefix_is_refused(
    base: Path, diff: Path, tmp_path: Path, refused: Refused
) -> None:
    broken = renamed(base, tmp_path / "broken", lambda name: f"transformer.{name}")
    refused(
        broken,
        diff,
        UnknownTensor,
        f"{broken} has 'transformer.{EMBEDDING}' where {EMBEDDING!r} belongs",
        next_step="rename its tensors: none may begin with transformer.",
    )


def test_one_tensor_under_another_prefix_is_refused(
    base: Path, diff: Path, tmp_path: Path, refused: Refused
) -> None:
    odd = "model.layers.0.mlp.up_proj.weight"
    broken = renamed(
        diff, tmp_path / "broken", lambda name: f"transformer.{name}" if name == odd else name
    )
    refused(
        base,
        broken,
        UnknownTensor,
        f"{broken} holds {f'transformer.{odd}'!r}, which the base {base} lacks",
        next_step="give a base and a diff of the same architecture; or, if it is no difference, "
        f"--rule transformer.{odd}=absolute",
    )
