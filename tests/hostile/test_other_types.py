"""Tensors of types that no published weights have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import damage
from camelpress.core.errors import CheckpointProblem

Refused = Callable[..., None]

EMBEDDING = "model.embed_tokens.weight"
NORM = "model.norm.weight"


@pytest.mark.parametrize("side", ["base", "diff"])
@pytest.mark.parametrize(
    ("dtype", "word"), [(torch.int8, "int8"), (torch.bool, "bool"), (torch.float64, "float64")]
)
@pytest.mark.parametrize("name", [EMBEDDING, NORM])
def test_other_types_are_not_added(
    base: Path, diff: Path, tmp_path: Path, refused: Refused, side: str, dtype: torch.dtype,
    word: str, name: str,
) -> None:  # fmt: skip
    inputs = {"base": base, "diff": diff}
    shape = (272 + (side == "diff"), 64) if name == EMBEDDING else (64,)
    changed = {name: torch.ones(shape, dtype=dtype)}
    inputs[side] = damage.with_tensors(inputs[side], tmp_path / "broken", changed)
    refused(
        *inputs.values(),
        CheckpointProblem,
        f"{inputs[side]} holds {name!r} as {word}",
        next_step="give a checkpoint of float32, bfloat16, float16 weights",
    )
