"""Config.json of an output, readable by transformers 4 and 5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MACHINE_CONFIG_KEYS = ("_name_or_path", "transformers_version")  # path and version of the author


def dtype_name(dtype: torch.dtype) -> str:
    """Returns the name of a dtype in configs and reports, such as `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def portable_config(config: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Returns a config with the keys of both generations of transformers.

    Version 5 reads the rotary base from `rope_parameters` and the dtype from `dtype`; version 4
    reads only `rope_theta`, `rope_scaling` and `torch_dtype`, and defaults silently to a base of
    10,000.

    Args:
        config: Config of the source.
        dtype: Dtype of the weights.
    """
    label = dtype_name(dtype)
    result = {key: value for key, value in config.items() if key not in MACHINE_CONFIG_KEYS}
    result |= {"torch_dtype": label, "dtype": label}
    rope = result.get("rope_parameters")
    if isinstance(rope, Mapping):
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        result.setdefault("rope_theta", rope.get("rope_theta", 10000.0))
        if scaling.get("rope_type", "default") != "default":
            result.setdefault("rope_scaling", scaling)
    return result
