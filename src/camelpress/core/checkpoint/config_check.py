"""Checks the values of a config.json before anything computes or loops with them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from camelpress.core import llama
from camelpress.core.errors import CheckpointProblem
from camelpress.core.input_limits import (
    MAX_HEADS,
    MAX_LAYERS,
    MAX_POSITIONS,
    MAX_VOCABULARY,
    MAX_WIDTH,
)

# fmt: off
SIZE_RANGES = {  # smallest and largest whole number of each size of a model
    "hidden_size":             (1, MAX_WIDTH),
    "intermediate_size":       (1, MAX_WIDTH),
    "head_dim":                (1, MAX_WIDTH),
    "num_hidden_layers":       (1, MAX_LAYERS),
    "max_window_layers":       (0, MAX_LAYERS),
    "num_attention_heads":     (1, MAX_HEADS),
    "num_key_value_heads":     (1, MAX_HEADS),
    "vocab_size":              (1, MAX_VOCABULARY),
    "max_position_embeddings": (1, MAX_POSITIONS),
    "sliding_window":          (1, MAX_POSITIONS),
}
# can be null
NULLABLE_SIZES = ("head_dim", "max_window_layers", "num_key_value_heads", "sliding_window")
NUMBER_RANGES = {  # smallest and largest number of each constant
    "rms_norm_eps":            (0.0, 1.0),
    "rope_theta":              (1e-6, 1e18),
}
# -1 stands for no token in configs of 2023
TOKEN_ID_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")
FLAG_KEYS = ("attention_bias", "mlp_bias", "use_sliding_window")
OBJECT_KEYS = ("rope_parameters", "rope_scaling")
TEXT_KEYS = ("hidden_act", "dtype", "torch_dtype")
# fmt: on
COMPARISON_ADVICE = "compare it with the config of the original model"
BLOCK_NUMBER_PATTERN = re.compile(r"model\.layers\.(\d{1,6})\.")


def require_valid_config(config: Mapping[str, Any], path: Path) -> None:
    """Refuses values that no model of the LLaMA family has; a key that is missing is no fault.

    Models of other families are only checked for the shape of `architectures` and `model_type`,
    by which they are recognized.

    Raises:
        CheckpointProblem: names the key, its value and what it can be.
    """
    _require_kind(config, path, "model_type", _is_text, "a text")
    _require_kind(config, path, "architectures", _is_text_list, "a list of texts")
    if config.get("model_type") not in llama.MODEL_FAMILIES:
        return
    for key, (low, high) in SIZE_RANGES.items():
        if key in config and not (config[key] is None and key in NULLABLE_SIZES):
            _require_between(config, path, key, low, high, (int,))
    for key, (smallest, largest) in NUMBER_RANGES.items():
        if config.get(key) is not None:
            _require_between(config, path, key, smallest, largest, (int, float))
    for key in TOKEN_ID_KEYS:
        _require_kind(config, path, key, _is_ids, f"an id, from 0 to {MAX_VOCABULARY:,}")
    for key in FLAG_KEYS:
        _require_kind(config, path, key, lambda value: isinstance(value, bool), "true or false")
    for key in OBJECT_KEYS:
        _require_kind(config, path, key, lambda value: isinstance(value, dict), "an object")
    for key in TEXT_KEYS:
        _require_kind(config, path, key, _is_text, "a text")


def require_layer_count(config: Mapping[str, Any], names: Iterable[str], path: Path) -> None:
    """Refuses a config with fewer decoder layers than there are weights for.

    Raises:
        CheckpointProblem: names both numbers.
    """
    stated = config.get("num_hidden_layers")
    if config.get("model_type") not in llama.MODEL_FAMILIES or stated is None:
        return
    layers = 1 + max(
        (int(found[1]) for found in map(BLOCK_NUMBER_PATTERN.match, names) if found), default=-1
    )
    if layers > stated:
        raise CheckpointProblem(
            f"{path} has num_hidden_layers {stated}, and the weights beside it are of {layers} "
            "layers",
            next_step="use the config that belongs to these weights",
        )


def _require_between(
    config: Mapping[str, Any],
    path: Path,
    key: str,
    low: int | float,
    high: int | float,
    kinds: tuple[type, ...],
) -> None:
    value = config[key]
    if type(value) not in kinds or not low <= value <= high:
        kind = "a whole number" if kinds == (int,) else "a number"
        raise _config_problem(path, key, value, f"{kind} from {low:,} to {high:,}")


def _require_kind(config: Mapping[str, Any], path: Path, key: str, check: Any, kind: str) -> None:
    value = config.get(key)
    if value is not None and not check(value):
        raise _config_problem(path, key, value, kind)


def _config_problem(path: Path, key: str, value: object, kind: str) -> CheckpointProblem:
    return CheckpointProblem(
        f"{path} is not usable ({key} is {value!r}, not {kind})", next_step=COMPARISON_ADVICE
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_text_list(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _is_ids(value: object) -> bool:
    ids = value if isinstance(value, list) else [value]
    return all(type(each) is int and -1 <= each <= MAX_VOCABULARY for each in ids)
