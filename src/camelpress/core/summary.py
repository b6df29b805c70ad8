"""What a checkpoint is, in a few figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from camelpress.core.checkpoint import Checkpoint, companions
from camelpress.core.config import dtype_name
from camelpress.core.linears import CODES, PARTS, packed_linears
from camelpress.core.llama import EMBEDDING, is_derived_buffer
from camelpress.core.precision import dequantized_by
from camelpress.core.schemes import overall
from camelpress.core.tokens import Tokenizer
from camelpress.core.words import WORD


def summary(checkpoint: Checkpoint) -> dict[str, Any]:
    """Architecture, size and quantization, from config and headers alone."""
    scheme = overall(checkpoint)
    embedding = checkpoint.tensors.get(f"{EMBEDDING}.weight")
    told: dict[str, Any] = {
        "path": Path(checkpoint.origin).name,
        "architecture": (checkpoint.config.get("architectures") or ["unknown"])[0],
        "parameters": parameters(checkpoint),
        "dtype": dtype_name(checkpoint.dtype) if embedding else "unknown",
        "bytes": checkpoint.nbytes,
        "bits": scheme and scheme.bits,
        "group_size": scheme and scheme.group_size,
        "sym": scheme and scheme.sym,
        "bits_per_weight": None,
        "dequantized": scheme is None and dequantized_by(checkpoint.folder) is not None,
    }
    if checkpoint.changes:
        told["config_changes"] = list(checkpoint.changes)
    if scheme:
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
    """Counts the weights, packed ones as what they stand for; derived buffers are none."""
    total = 0
    schemes = packed_linears(checkpoint)
    for name, info in checkpoint.tensors.items():
        linear, _, part = name.rpartition(".")
        count = torch.Size(info.shape).numel()
        if linear in schemes and part in CODES:
            total += count * WORD // schemes[linear].bits
        elif not is_derived_buffer(name) and (linear not in schemes or part not in PARTS):
            total += count
    return total
