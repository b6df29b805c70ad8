"""Checks that two checkpoints are one model: the same tensors with the same computation.

File names, shards, file formats, tokenizers and reports do not matter.
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

# attributes of a transformers config that change the computation
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


def is_same_model(first: Checkpoint, second: Checkpoint) -> bool:
    """Returns True if two checkpoints hold the same tensors and compute the same from them.

    Tensors are read only if names, dtypes and shapes agree, and only up to the first difference.
    """
    if _tensor_headers(first) != _tensor_headers(second) or _layer_schemes(first) != _layer_schemes(
        second
    ):
        return False
    if not is_same_computation(first.config, second.config):
        return False
    first_names, second_names = _stored_names(first), _stored_names(second)
    by_size = sorted(first_names, key=lambda name: first.tensors[first_names[name]].nbytes)
    return all(
        _is_same_tensor(first, first_names[name], second, second_names[name]) for name in by_size
    )


def is_same_computation(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Returns True if two configs define the same computation."""
    return first == second or _computation_keys(first) == _computation_keys(second)


def headers_digest(checkpoint: Checkpoint) -> str:
    """Returns one hash over names, dtypes and shapes of all tensors; no tensor is read."""
    return sha256_json(
        {
            name: [dtype_name(dtype), shape]
            for name, (dtype, shape) in _tensor_headers(checkpoint).items()
        }
    )


def weights_digest(checkpoint: Checkpoint) -> str:
    """Returns one hash over the bytes of all tensors, independent of their files."""
    names = _stored_names(checkpoint).items()
    return sha256_json({name: _sha256(checkpoint, stored) for name, stored in names})


def _stored_names(checkpoint: Checkpoint) -> dict[str, str]:
    """Maps each tensor of a model to its stored tensor: a tied head is stored in the embedding.

    Buffers computed from the config are not part of a model.
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
    """Reads a config with transformers, for its defaults and both spellings of RoPE."""
    kind = config.get("model_type")
    if kind not in MODEL_FAMILIES:
        return dict(config)
    try:
        parsed = CONFIG_MAPPING[str(kind)].from_dict(dict(config))
    except CONFIG_ERRORS:
        return dict(config)  # not a valid config; the stage reports it
    return {name: getattr(parsed, name, None) for name in COMPUTATION_KEYS}


def _is_same_tensor(
    first: Checkpoint, first_name: str, second: Checkpoint, second_name: str
) -> bool:
    first_info, second_info = first.tensors[first_name], second.tensors[second_name]
    file = first.folder / first_info.shard
    in_place = first_info.offset is not None and first_info.offset == second_info.offset
    if in_place and file.samefile(second.folder / second_info.shard):
        return True
    return torch.equal(_bytes_of(first, first_name), _bytes_of(second, second_name))


def _sha256(checkpoint: Checkpoint, name: str) -> str:
    return hashlib.sha256(_bytes_of(checkpoint, name).numpy().data).hexdigest()


def _bytes_of(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    return checkpoint.read(name).contiguous().reshape(-1).view(torch.uint8)
