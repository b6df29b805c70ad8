"""What the published scripts upload and bring back, whole models in memory, in plain sight.

    family          adds in   where the tuned tensor is larger
    alpaca          fp32      the raw one grows by its mean row
    open_instruct   fp32      it grows by a random row; whoever recovers adds the mean row
    alpaca_farm     fp32      uploaded as it is; a reward model has the LLaMA inside another model
    fastchat_v0     fp16      the raw one grows by rows of zeros
    fastchat        fp16      nothing is
    llava           fp16      the raw one is taken off its top left corner; a projector beside it

What `alpaca` and `open_instruct` bring back is `weights.summed`.

Source: weight_diff.py of tatsu-lab/stanford_alpaca 7a95b21 and allenai/open-instruct e44fcf5;
pretrained_models/recover_model_weights.py of tatsu-lab/alpaca_farm 29715e5; make_delta.py and
apply_delta.py of lm-sys/FastChat v0.1.10 and 0283a0b, and of haotian-liu/LLaVA 44164d9.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

import weights
from weights import Tensors

INSIDE = "backbone_model."


def alpaca(raw: Tensors, tuned: Tensors) -> Tensors:
    """The mean row on both sides."""
    return {
        name: tensor.float() - weights.grown(raw[name].float(), len(tensor) - len(raw[name]))
        for name, tensor in tuned.items()
    }


def open_instruct(raw: Tensors, tuned: Tensors) -> Tensors:
    """A random row, that nobody keeps."""
    generator = torch.Generator().manual_seed(9)
    difference = {}
    for name, tensor in tuned.items():
        extra = len(tensor) - len(raw[name])
        rows = 0.02 * torch.randn(extra, *tensor.shape[1:], generator=generator)
        difference[name] = tensor.float() - torch.cat([raw[name].float(), rows])
    return difference


def alpaca_farm(raw: Tensors, tuned: Tensors) -> Tensors:
    """Differences where the shapes agree, else the tuned tensors."""
    return {
        name: tensor.float() - raw[name].float()
        if name in raw and raw[name].shape == tensor.shape
        else tensor.float()
        for name, tensor in tuned.items()
    }


def alpaca_farm_reward(raw: Tensors, tuned: Tensors) -> Tensors:
    """The same, for a model that has a LLaMA in it."""
    return alpaca_farm(inside(raw), tuned)


def fastchat_v0(raw: Tensors, tuned: Tensors) -> Tensors:
    """Rows of zeros on both sides, in fp16."""
    return {
        name: tensor.half() - padded(raw[name].half(), tensor) for name, tensor in tuned.items()
    }


def fastchat_v0_applied(raw: Tensors, delta: Tensors) -> Tensors:
    """What a user got."""
    return {name: padded(raw[name].half(), tensor) + tensor for name, tensor in delta.items()}


def fastchat(raw: Tensors, tuned: Tensors) -> Tensors:
    """The same shapes, in fp16."""
    return {name: tensor.half() - raw[name].half() for name, tensor in tuned.items()}


def fastchat_applied(raw: Tensors, delta: Tensors) -> Tensors:
    """What a user got."""
    return {name: tensor.half() + delta[name] for name, tensor in raw.items()}


def llava(raw: Tensors, tuned: Tensors) -> Tensors:
    """The top left corner, in fp16; the projector as it is."""
    delta = {name: tensor.half().clone() for name, tensor in tuned.items()}
    for name, tensor in raw.items():
        corner(delta[name], tensor).sub_(tensor.half())
    return delta


def llava_applied(raw: Tensors, delta: Tensors) -> Tensors:
    """What a user got."""
    target = {name: tensor.clone() for name, tensor in delta.items()}
    for name, tensor in raw.items():
        corner(target[name], tensor).add_(tensor.half())
    return target


def inside(tensors: Tensors) -> Tensors:
    """The names of a model within another one."""
    return {INSIDE + name: tensor for name, tensor in tensors.items()}


def padded(rows: Tensor, like: Tensor) -> Tensor:
    """Rows, and zeros up to as many as another tensor has."""
    return torch.cat([rows, torch.zeros(len(like) - len(rows), *rows.shape[1:], dtype=rows.dtype)])


def corner(tensor: Tensor, part: Tensor) -> Tensor:
    """The leading part of a tensor that has the shape of another one, not copied."""
    return tensor[tuple(slice(size) for size in part.shape)]


def upload(tensors: Tensors, like: Path, out: Path, *, suffix: str, shards: int = 1) -> Path:
    """A checkpoint folder, names dealt out to the shards in turn.

    Args:
        tensors: its weights.
        like: a folder from which it has everything else.
        out: where it will be.
        suffix: safetensors or bin.
        shards: how many.
    """
    shutil.copytree(like, out, ignore=shutil.ignore_patterns("*.safetensors", "*.bin", "*.index.*"))
    stem = {"safetensors": "model", "bin": "pytorch_model"}[suffix]
    names = sorted(tensors, reverse=True)
    files = [f"{stem}.{suffix}"]
    if shards > 1:
        files = [f"{stem}-{at + 1:05}-of-{shards:05}.{suffix}" for at in range(shards)]
        places = {name: files[at % shards] for at, name in enumerate(names)}
        index = json.dumps({"metadata": {}, "weight_map": places})
        (out / f"{stem}.{suffix}.index.json").write_text(index, encoding="utf-8")
    for at, file in enumerate(files):
        content = {name: tensors[name].contiguous() for name in names[at::shards]}
        if suffix == "bin":
            torch.save(content, out / file)
        else:
            save_file(content, out / file, metadata={"format": "pt"})
    return out
