"""Checkpoints as they should not be: copies that are changed in one place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

INDEX = "model.safetensors.index.json"


def copied(folder: Path, out: Path) -> Path:
    """The same checkpoint, to be broken."""
    return shutil.copytree(folder, out)


def with_tensors(folder: Path, out: Path, changed: Mapping[str, Tensor | None]) -> Path:
    """A copy with other tensors; None takes one away."""
    copied(folder, out)
    tensors = {**load_file(out / "model.safetensors"), **changed}
    kept = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, out / "model.safetensors", metadata={"format": "pt"})
    return out


def with_config(folder: Path, out: Path, **changed: Any) -> Path:
    """A copy with other entries of its config; None takes one away."""
    copied(folder, out)
    config = json.loads((out / "config.json").read_text(encoding="utf-8")) | changed
    kept = {key: value for key, value in config.items() if value is not None}
    (out / "config.json").write_text(json.dumps(kept), encoding="utf-8")
    return out


def sharded(folder: Path, out: Path) -> Path:
    """A copy in two shards with an index; norms are in the second."""
    copied(folder, out)
    tensors = load_file(out / "model.safetensors")
    (out / "model.safetensors").unlink()
    shards: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        shards.setdefault(f"model-{1 + ('norm' in name)}.safetensors", {})[name] = tensor
    for shard, content in shards.items():
        save_file(content, out / shard, metadata={"format": "pt"})
    places = {name: shard for shard, content in shards.items() for name in content}
    (out / INDEX).write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    return out


def move(folder: Path, **places: Any) -> None:
    """Let the index name other shards."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    index["weight_map"] |= places
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")


def spoiled(tensor: Tensor, value: float) -> Tensor:
    """A copy with one value replaced."""
    changed = tensor.clone().to(torch.float32)
    changed.view(-1)[5] = value
    return changed.to(tensor.dtype)
