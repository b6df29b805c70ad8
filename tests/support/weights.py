"""Checkpoint folders as dictionaries of tensors, and the published script's sum in plain sight."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]


def read(folder: Path) -> Tensors:
    """All tensors of a folder of safetensors."""
    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def changed(folder: Path, out: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """A copy of a one-file checkpoint with other tensors."""
    shutil.copytree(folder, out)
    tensors = {name: tensor.contiguous() for name, tensor in change(read(folder)).items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def grown(rows: Tensor, extra: int) -> Tensor:
    """Rows and, for each added token, their mean."""
    return torch.cat([rows, rows.mean(dim=0, keepdim=True).expand(extra, -1)]) if extra else rows


def summed(base: Tensors, diff: Tensors) -> Tensors:
    """base + diff as the published script adds them: whole models, fp32."""
    return {
        name: grown(base[name].float(), len(tensor) - len(base[name])) + tensor.float()
        for name, tensor in diff.items()
    }


def same(left: Tensors, right: Tensors) -> bool:
    """Whether both hold the same tensors, type and bits included."""
    return left.keys() == right.keys() and all(
        tensor.dtype == right[name].dtype and torch.equal(tensor, right[name])
        for name, tensor in left.items()
    )
