"""Pickled `.bin` shards, read through torch's allowlist unpickler and never any other way."""

from __future__ import annotations

import pickle
import zipfile
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from camelpress.core.errors import CheckpointProblem

SAFE_TORCH = (2, 10)  # weights_only was broken before: CVE-2025-32434 (2.6), CVE-2026-24747 (2.10)
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # how torch before 1.6 began a file
REFUSALS = (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError)


def places(path: Path) -> dict[str, tuple[Tensor, int | None]]:
    """The tensors of one shard, without their values, and where in the file these begin.

    A shard is a zip archive that compresses nothing, so a tensor lies in it as in memory; there
    is no place for one that is not contiguous, such as a transposed view.

    Raises:
        CheckpointProblem: a torch that is not safe for this, a file that is not a plain
            dictionary of tensors, or one that wants to run code.
    """
    content = _loaded(path, values=False)
    return {name: (tensor, _offset(tensor)) for name, tensor in content.items()}


@lru_cache(maxsize=1)
def load(path: Path) -> dict[str, Tensor]:
    """The tensors of one shard, memory-mapped.

    Raises:
        CheckpointProblem: as `places`.
    """
    return _loaded(path, values=True)


def _loaded(path: Path, *, values: bool) -> dict[str, Tensor]:
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < SAFE_TORCH:
        raise CheckpointProblem(
            f"{path} is a pickle, and torch {torch.__version__} does not read those safely",
            next_step="install torch >= 2.10, or convert the file to safetensors",
        )
    try:
        _require_archive(path)
        if values:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        else:
            with FakeTensorMode():
                content = torch.load(path, map_location="cpu", weights_only=True)
    except REFUSALS as error:
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


def _require_archive(path: Path) -> None:
    if zipfile.is_zipfile(path):
        return
    with path.open("rb") as file:
        start = file.read(len(LEGACY))
    raise ValueError(
        "torch wrote it before version 1.6; load and save it once with a newer one"
        if start == LEGACY
        else "it is not an archive of torch"
    )


def _offset(tensor: Tensor) -> int | None:
    if not tensor.is_contiguous():
        return None
    start = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)  # set by torch.load
    return None if start is None else start + int(tensor.storage_offset()) * tensor.element_size()
