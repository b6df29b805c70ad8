"""Decides whether two checkpoints are one model: the same tensors, computed with in the same way.

File names, shards, formats of files, tokenizers and reports do not matter here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from transformers import CONFIG_MAPPING

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.portable_config import dtype_name
from camelpress.core.files.file_hashes import sha256_json
from camelpress.core.llama import EMBEDDING_NAME, HEAD_NAME, MODEL_FAMILIES, is_derived_buffer
from camelpress.core.packing.linear_layers import CODE_TENSOR_NAMES
from camelpress.core.packing.quantization_schemes import QuantizationScheme, layer_scheme
from camelpress.inference.model.streamed_model import CONFIG_ERRORS

# attributes of a transformers config that change what the same tensors compute
COMPUTATION_KEYS = (
    "model_type",
    "hidden_act",
    "rms_norm_eps",
    "rope_parameters",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "sliding_window",
    "use_sliding_window",
    "layer_types",
)


def is_same_model(one: Checkpoint, other: Checkpoint) -> bool:
    """Returns whether two checkpoints hold the same tensors and compute with them alike.

    Tensors are read only where names, types and shapes agree, and only up to the first difference.
    """
    if _tensor_headers(one) != _tensor_headers(other) or _layer_schemes(one) != _layer_schemes(
        other
    ):
        return False
    if not is_same_computation(one.config, other.config):
        return False
    here, there = _stored_names(one), _stored_names(other)
    by_size = sorted(here, key=lambda name: one.tensors[here[name]].nbytes)
    return all(_is_same_tensor(one, here[name], other, there[name]) for name in by_size)


def is_same_computation(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Returns whether two configs make the same computation of the same tensors."""
    return one == other or _computation_keys(one) == _computation_keys(other)


def headers_digest(checkpoint: Checkpoint) -> str:
    """Returns one hash over the names, types and shapes of all tensors; none is read."""
    return sha256_json(
        {
            name: [dtype_name(dtype), shape]
            for name, (dtype, shape) in _tensor_headers(checkpoint).items()
        }
    )


def weights_digest(checkpoint: Checkpoint) -> str:
    """Returns one hash over the bytes of all tensors, independent of the files that hold them."""
    names = _stored_names(checkpoint).items()
    return sha256_json({name: _sha256(checkpoint, stored) for name, stored in names})


def _stored_names(checkpoint: Checkpoint) -> dict[str, str]:
    """Maps each tensor of a model to the one that holds it: a tied head lies in the embedding.

    Buffers that are computed from the config are no part of a model.
    """
    names = {name: name for name in checkpoint.tensors if not is_derived_buffer(name)}
    head, embedding = f"{HEAD_NAME}.weight", f"{EMBEDDING_NAME}.weight"
    if embedding in names and not any(name.startswith(f"{HEAD_NAME}.") for name in names):
        names[head] = embedding
    return names


def _tensor_headers(checkpoint: Checkpoint) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    infos = {name: checkpoint.tensors[at] for name, at in _stored_names(checkpoint).items()}
    return {name: (info.dtype, info.shape) for name, info in infos.items()}


def _layer_schemes(checkpoint: Checkpoint) -> dict[str, QuantizationScheme | None]:
    split = (name.rpartition(".") for name in checkpoint.tensors)
    return {
        linear: layer_scheme(checkpoint, linear)
        for linear, _, part in split
        if part in CODE_TENSOR_NAMES
    }


def _computation_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Reads a config as transformers does, which knows the defaults and both ways to write RoPE."""
    kind = config.get("model_type")
    if kind not in MODEL_FAMILIES:
        return dict(config)
    try:
        read = CONFIG_MAPPING[str(kind)].from_dict(dict(config))
    except CONFIG_ERRORS:
        return dict(config)  # no model can be made of it, which the stage reports
    return {name: getattr(read, name, None) for name in COMPUTATION_KEYS}


def _is_same_tensor(one: Checkpoint, name: str, other: Checkpoint, other_name: str) -> bool:
    here, there = one.tensors[name], other.tensors[other_name]
    file = one.folder / here.shard
    in_place = here.offset is not None and here.offset == there.offset
    if in_place and file.samefile(other.folder / there.shard):
        return True
    return torch.equal(_bytes_of(one, name), _bytes_of(other, other_name))


def _sha256(checkpoint: Checkpoint, name: str) -> str:
    return hashlib.sha256(_bytes_of(checkpoint, name).numpy().data).hexdigest()


def _bytes_of(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    return checkpoint.read(name).contiguous().reshape(-1).view(torch.uint8)
