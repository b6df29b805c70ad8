"""Pickled `.bin` shards, read through torch's allowlist unpickler and never any other way."""

from __future__ import annotations

import pickle
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from camelpress.core.errors import CheckpointProblem

SAFE_TORCH = (2, 10)  # weights_only was broken before: CVE-2025-32434 (2.6), CVE-2026-24747 (2.10)


@lru_cache(maxsize=1)  # one shard open at a time; its tensors are memory-mapped
def load(path: Path) -> dict[str, Tensor]:
    """The tensors of one shard, memory-mapped.

    Raises:
        CheckpointProblem: a torch that is not safe for this, a file that is not a plain
            dictionary of tensors, or one that wants to run code.
    """
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < SAFE_TORCH:
        raise CheckpointProblem(
            f"{path} is a pickle, and torch {torch.__version__} does not read those safely",
            next_step="install torch >= 2.10, or convert the file to safetensors",
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointProblem(
            f"{path} cannot be read as plain weights ({reason})",
            next_step="do not trust this file, or download it again",
        ) from error
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise CheckpointProblem(
            f"{path} is not a dictionary of tensors", next_step="give a model's state dict"
        )
    return content
