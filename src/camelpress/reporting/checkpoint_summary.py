"""Summarizes a checkpoint in a few figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from camelpress.core.checkpoint.checkpoint import Checkpoint, sidecar_files
from camelpress.core.checkpoint.portable_config import dtype_name
from camelpress.core.llama import EMBEDDING_NAME
from camelpress.core.packing.linear_layers import count_parameters
from camelpress.core.packing.quantization_schemes import default_scheme
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.reporting.facts.validation_facts import ModelFacts
from camelpress.reporting.model_precision import dequantized_by


def summarize_checkpoint(checkpoint: Checkpoint) -> ModelFacts:
    """Summarizes architecture, size and quantization from config and headers alone."""
    scheme = default_scheme(checkpoint)
    embedding = checkpoint.tensors.get(f"{EMBEDDING_NAME}.weight")
    facts: dict[str, Any] = {
        "path": Path(checkpoint.source_name).name,
        "architecture": (checkpoint.config.get("architectures") or ["unknown"])[0],
        "parameters": count_parameters(checkpoint),
        "dtype": dtype_name(checkpoint.dtype) if embedding else "unknown",
        "bytes": checkpoint.nbytes,
        "bits": scheme and scheme.bits,
        "group_size": scheme and scheme.group_size,
        "sym": scheme and scheme.sym,
        "bits_per_weight": None,
        "dequantized": scheme is None and dequantized_by(checkpoint.folder) is not None,
    }
    if checkpoint.config_changes:
        facts["config_changes"] = list(checkpoint.config_changes)
    if scheme:
        facts["bits_per_weight"] = round(8 * checkpoint.nbytes / facts["parameters"], 3)
    return ModelFacts.build(facts)


def describe_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """Describes a checkpoint in full: summary, files, tokenizer, chat template, tensors."""
    return {
        **summarize_checkpoint(checkpoint).record,
        "files": {path.name: path.stat().st_size for path in checkpoint.weight_files()},
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
    if not any(name.startswith("tokenizer") for name in sidecar_files(checkpoint.folder)):
        return None
    tokenizer = Tokenizer.load(checkpoint.folder)
    template = tokenizer.chat_template
    kind = "none" if template is None else "Tulu" if "<|assistant|>" in template else "other"
    return {
        "size": len(tokenizer),
        "bos": tokenizer.bos,
        "eos": tokenizer.eos,
        "pad": tokenizer.pad,
        "chat_template": kind,
    }
