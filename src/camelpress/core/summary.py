"""What a checkpoint is, in a few figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from camelpress.core.checkpoint import Checkpoint, companions
from camelpress.core.config import dtype_name
from camelpress.core.dynamic import settings_of
from camelpress.core.llama import EMBEDDING
from camelpress.core.tokens import Tokenizer


def summary(checkpoint: Checkpoint) -> dict[str, Any]:
    """Architecture, size and quantization, from config and headers alone."""
    quantization = checkpoint.quantization or {}
    embedding = checkpoint.tensors.get(f"{EMBEDDING}.weight")
    told: dict[str, Any] = {
        "path": Path(checkpoint.origin).name,
        "architecture": (checkpoint.config.get("architectures") or ["unknown"])[0],
        "parameters": parameters(checkpoint),
        "dtype": dtype_name(embedding.dtype) if embedding else "unknown",
        "bytes": checkpoint.nbytes,
        "bits": quantization.get("bits"),
        "group_size": quantization.get("group_size"),
        "sym": quantization.get("sym"),
        "bits_per_weight": None,
    }
    if quantization:
        told["bits_per_weight"] = round(8 * checkpoint.nbytes / told["parameters"], 3)
    return told


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Everything there is to tell: the summary, tokenizer, chat template and every tensor."""
    return {
        **summary(checkpoint),
        "files": {path.name: path.stat().st_size for path in checkpoint.files()},
        "quantization": dict(checkpoint.quantization or {}) or None,
        "tokenizer": _tokenizer(checkpoint),
        "tensors": [
            {
                "name": name,
                "dtype": dtype_name(info.dtype),
                "shape": list(info.shape),
            }
            for name, info in sorted(checkpoint.tensors.items())
        ],
    }


def _tokenizer(checkpoint: Checkpoint) -> dict[str, Any] | None:
    if not any(name.startswith("tokenizer") for name in companions(checkpoint.folder)):
        return None
    tokenizer = Tokenizer.load(checkpoint.folder)
    template = tokenizer.template
    kind = "none" if template is None else "Tulu" if "<|assistant|>" in template else "other"
    return {
        "size": len(tokenizer),
        "bos": tokenizer.bos,
        "eos": tokenizer.eos,
        "pad": tokenizer.pad,
        "chat_template": kind,
    }


def parameters(checkpoint: Checkpoint) -> int:
    """How many weights there are, packed ones counted as what they stand for."""
    quantization = checkpoint.quantization or {}
    total = 0
    for name, info in checkpoint.tensors.items():
        count = torch.Size(info.shape).numel()
        if name.endswith(".qweight"):
            own = settings_of(quantization, name.removesuffix(".qweight")) or quantization
            total += count * 32 // own.get("bits", 4)
        elif not name.endswith((".qzeros", ".scales", ".g_idx")):
            total += count
    return total
