"""The config.json of what we write: readable by the loaders of today and of two years ago."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MACHINE_CONFIG_KEYS = ("_name_or_path", "transformers_version")  # of whoever wrote the source


def dtype_name(dtype: torch.dtype) -> str:
    """A type as configs and reports write it: `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def portable_config(config: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """A config with what both generations of transformers look for.

    Version 5 keeps the rotary base inside `rope_parameters` and the type in `dtype`; version 4
    reads `rope_theta`, `rope_scaling` and `torch_dtype` only, and takes a base of 10,000 without
    a word where it finds none.

    Args:
        config: of the source.
        dtype: of the weights beside it.
    """
    word = dtype_name(dtype)
    told = {key: value for key, value in config.items() if key not in MACHINE_CONFIG_KEYS}
    told |= {"torch_dtype": word, "dtype": word}
    rope = told.get("rope_parameters")
    if isinstance(rope, Mapping):
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        told.setdefault("rope_theta", rope.get("rope_theta", 10000.0))
        if scaling.get("rope_type", "default") != "default":
            told.setdefault("rope_scaling", scaling)
    return told
