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
SIZE_RANGES = {  # config key: smallest and largest size
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
# Sizes with null as an allowed value.
NULLABLE_SIZES = ("head_dim", "max_window_layers", "num_key_value_heads", "sliding_window")
NUMBER_RANGES = {  # config key: smallest and largest number
    "rms_norm_eps":            (0.0, 1.0),
    "rope_theta":              (1e-6, 1e18),
}
# In configs of 2023, -1 means no token.
TOKEN_ID_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")
FLAG_KEYS = ("attention_bias", "mlp_bias", "use_sliding_window")
OBJECT_KEYS = ("rope_parameters", "rope_scaling")
TEXT_KEYS = ("hidden_act", "dtype", "torch_dtype")
# fmt: on
COMPARISON_ADVICE = "compare it with the config of the original model"
BLOCK_NUMBER_PATTERN = re.compile(r"model\.layers\.(\d{1,6})\.")


def require_valid_config(config: Mapping[str, Any], path: Path) -> None:
    """Refuses config values outside the LLaMA family's ranges; missing keys are allowed.

    For other families, only the types of `architectures` and `model_type` are checked.

    Args:
        config: Content of config.json.
        path: Path of config.json, for messages.
    Raises:
        CheckpointProblem: A value is invalid; names the key, the value and the valid range.
    """
    _require_kind(config, path, "model_type", _is_text, "a text")
    _require_kind(config, path, "architectures", _is_text_list, "a list of texts")
    if config.get("model_type") not in llama.MODEL_FAMILIES:
        return
    for key, (low, high) in SIZE_RANGES.items():
        if key in config and not (config[key] is None and key in NULLABLE_SIZES):
            _require_between(config, path, key, low, high, (int,))
    for key, (minimum, maximum) in NUMBER_RANGES.items():
        if config.get(key) is not None:
            _require_between(config, path, key, minimum, maximum, (int, float))
    for key in TOKEN_ID_KEYS:
        _require_kind(config, path, key, _is_ids, f"an id, from 0 to {MAX_VOCABULARY:,}")
    for key in FLAG_KEYS:
        _require_kind(config, path, key, lambda value: isinstance(value, bool), "true or false")
    for key in OBJECT_KEYS:
        _require_kind(config, path, key, lambda value: isinstance(value, dict), "an object")
    for key in TEXT_KEYS:
        _require_kind(config, path, key, _is_text, "a text")


def require_layer_count(config: Mapping[str, Any], names: Iterable[str], path: Path) -> None:
    """Refuses a config with fewer decoder blocks than the weights.

    Args:
        config: Content of config.json.
        names: Names of all tensors.
        path: Path of config.json, for messages.
    Raises:
        CheckpointProblem: The weights have more blocks; names both numbers.
    """
    config_layers = config.get("num_hidden_layers")
    if config.get("model_type") not in llama.MODEL_FAMILIES or config_layers is None:
        return
    matches = map(BLOCK_NUMBER_PATTERN.match, names)
    layers = 1 + max((int(match[1]) for match in matches if match), default=-1)
    if layers > config_layers:
        raise CheckpointProblem(
            f"{path} has num_hidden_layers {config_layers}, and the weights beside it are of "
            f"{layers} layers",
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
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _is_ids(value: object) -> bool:
    ids = value if isinstance(value, list) else [value]
    return all(type(number) is int and -1 <= number <= MAX_VOCABULARY for number in ids)
