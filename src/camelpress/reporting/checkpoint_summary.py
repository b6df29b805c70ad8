"""What a checkpoint is, in a few figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from camelpress.core.checkpoint.checkpoint import Checkpoint, companions
from camelpress.core.checkpoint.portable_config import dtype_name
from camelpress.core.llama import EMBEDDING
from camelpress.core.packing.linear_layers import parameters
from camelpress.core.packing.quantization_schemes import overall
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.reporting.model_precision import dequantized_by


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
