"""Repairs a config in contradiction to its tensors; the tensors win.

A loader with the original config would run another model, or none. So each checkpoint is read with
a repaired config, each change is reported, and each output gets the repaired config.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from camelpress.core import llama
from camelpress.core.checkpoint import format_detection
from camelpress.core.checkpoint.portable_config import dtype_name
from camelpress.core.checkpoint.shards import TensorInfo
from camelpress.core.errors import CheckpointProblem

QUANTIZATION_CONFIG = "quantization_config"
COMPRESSION_CONFIG = "compression_config"  # the same key in llm-compressor's models of 2024
INTEGER_KEYS = ("bits", "group_size", "act_bits")  # keys of a quantization_config
BOOLEAN_KEYS = ("sym", "desc_act", "is_marlin_format")  # keys of a quantization_config
LAYER_OVERRIDE_KEYS = ("dynamic", "extra_config")  # objects with settings of single layers
BOOLEAN_WORDS: Mapping[Any, bool] = {"true": True, "false": False}
COMPARISON_ROWS = 4096  # rows of two matrices compared at a time
RowReader = Callable[[str, int, int], Tensor]  # arguments: name, first row, end row


class ConfigRepair(NamedTuple):
    """A config in agreement with the tensors, and one sentence per change."""

    config: dict[str, Any]
    changes: tuple[str, ...] = ()


def repair_config(
    config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], read_rows: RowReader, path: Path
) -> ConfigRepair:
    """Returns the config in agreement with the tensors.

    Args:
        config: Content of config.json.
        tensors: Tensor name to its header entry.
        read_rows: Reads a range of rows of a tensor.
        path: Path of config.json, for messages.
    Raises:
        CheckpointProblem: A flag or a number of the config has another type.
    """
    quantization = _repair_quantization(config, tensors, path)
    head = _repair_head(quantization.config, tensors, read_rows, path)
    return ConfigRepair(head.config, quantization.changes + head.changes)


def _repair_quantization(
    config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], path: Path
) -> ConfigRepair:
    key = (
        QUANTIZATION_CONFIG
        if config.get(QUANTIZATION_CONFIG) not in (None, {})
        else COMPRESSION_CONFIG
    )
    rest = {name: value for name, value in config.items() if name not in (QUANTIZATION_CONFIG, key)}
    settings = config.get(key)
    if settings is None or settings == {}:
        return ConfigRepair(rest)
    if not isinstance(settings, Mapping):
        return ConfigRepair(dict(config))
    if format_detection.has_plain_linears(tensors):
        return ConfigRepair(rest, (_describe_leftover(key, settings, tensors),))
    repaired, changes = _repair_types(settings, path)
    if key != QUANTIZATION_CONFIG:
        changes = (f"{key} is read as {QUANTIZATION_CONFIG}", *changes)
    if repaired.get("quant_method") is None and "bits" in repaired:
        repaired["quant_method"] = "gptq"
        changes += (
            f"{QUANTIZATION_CONFIG} names no quant_method, as in 2023, and is read as gptq",
        )
    return ConfigRepair(rest | {QUANTIZATION_CONFIG: repaired}, changes)


def _describe_leftover(
    key: str, settings: Mapping[str, Any], tensors: Mapping[str, TensorInfo]
) -> str:
    method = settings.get("quant_method")
    plain_info = next(
        info for name, info in tensors.items() if name.endswith(format_detection.LINEAR_SUFFIXES)
    )
    label = f" of {method}" if method else ""
    return f"{key}{label} is left over, since the weights are plain {dtype_name(plain_info.dtype)}"


def _repair_types(settings: Mapping[str, Any], path: Path) -> ConfigRepair:
    """Converts numbers and flags to their types, in common settings and those of single layers."""
    repaired, changes = _repair_value_types(settings, path)
    for override_key in LAYER_OVERRIDE_KEYS:
        rules = repaired.get(override_key)
        if isinstance(rules, Mapping):
            repairs = {
                key: _repair_value_types(values, path)
                if isinstance(values, Mapping)
                else ConfigRepair(values)
                for key, values in rules.items()
            }
            repaired[override_key] = {key: repair.config for key, repair in repairs.items()}
            changes += tuple(change for repair in repairs.values() for change in repair.changes)
    return ConfigRepair(repaired, tuple(dict.fromkeys(changes)))


def _repair_value_types(settings: Mapping[str, Any], path: Path) -> ConfigRepair:
    """Converts numbers and flags to their types."""
    repaired, changes = dict(settings), []
    for key in (*INTEGER_KEYS, *BOOLEAN_KEYS):
        value = repaired.get(key)
        if value is None:
            continue
        parse = _parse_integer if key in INTEGER_KEYS else _parse_boolean
        repaired[key] = parse(key, value, path)
        if type(value) is not type(repaired[key]):
            changes.append(_describe_change(key, value, repaired[key]))
    return ConfigRepair(repaired, tuple(changes))


def _describe_change(key: str, value: Any, new_value: Any) -> str:
    return f"{key} is {json.dumps(value)}, and is read as {json.dumps(new_value)}"


def _parse_integer(key: str, value: Any, path: Path) -> int:
    try:
        number = value if isinstance(value, (int, float)) else float(str(value))
        if isinstance(value, bool) or number != int(number):
            raise ValueError
        return int(number)
    except (ValueError, OverflowError):
        raise CheckpointProblem(
            f"{path} has {key} {json.dumps(value)}, where a whole number belongs",
            next_step=f"write {key} as the model was quantized, without quotes",
        ) from None


def _parse_boolean(key: str, value: Any, path: Path) -> bool:
    flag = BOOLEAN_WORDS.get(value.lower()) if isinstance(value, str) else value
    if not isinstance(flag, (bool, int)) or flag not in (0, 1):
        raise _flag_problem(key, value, path)
    return bool(flag)


def _flag_problem(key: str, value: Any, path: Path) -> CheckpointProblem:
    return CheckpointProblem(
        f"{path} has {key} {json.dumps(value)}, where true or false belongs",
        next_step=f"write true or false for {key}, without quotes",
    )


def _repair_head(
    config: dict[str, Any], tensors: Mapping[str, TensorInfo], read_rows: RowReader, path: Path
) -> ConfigRepair:
    """Returns a config without a tie if embedding and head are two different matrices."""
    text_config = config.get(llama.TEXT_CONFIG_KEY)
    if llama.TIE_EMBEDDINGS_KEY in config or not isinstance(text_config, Mapping):
        return _repair_tie(config, tensors, read_rows, path)
    text = _repair_tie(dict(text_config), tensors, read_rows, path)
    return ConfigRepair(config | {llama.TEXT_CONFIG_KEY: text.config}, text.changes)


def _repair_tie(
    config: dict[str, Any], tensors: Mapping[str, TensorInfo], read_rows: RowReader, path: Path
) -> ConfigRepair:
    flag = config.get(llama.TIE_EMBEDDINGS_KEY)
    if flag is None:
        return ConfigRepair(
            {key: value for key, value in config.items() if key != llama.TIE_EMBEDDINGS_KEY}
        )
    if not isinstance(flag, bool):  # transformers also refuses a text or a number
        raise _flag_problem(llama.TIE_EMBEDDINGS_KEY, flag, path)
    difference = _head_difference(tensors, read_rows) if flag else None
    if not difference:
        return ConfigRepair(config)
    change = (
        f"{llama.TIE_EMBEDDINGS_KEY} is true, but {llama.HEAD_NAME} is {difference}: it is read as "
        "false, and the head is used; some loaders would use the embedding"
    )
    return ConfigRepair(config | {llama.TIE_EMBEDDINGS_KEY: False}, (change,))


def _head_difference(tensors: Mapping[str, TensorInfo], read_rows: RowReader) -> str | None:
    """Describes the difference of the head from the embedding; None if equal or missing."""
    if not llama.has_head(tensors):
        return None
    names = (f"{llama.HEAD_NAME}.weight", f"{llama.EMBEDDING_NAME}.weight")
    head, embedding = (tensors.get(name) for name in names)
    if head is None:
        return "packed"
    if embedding is None or _is_same_storage(head, embedding):
        return None
    if head.shape != embedding.shape or not _is_equal_matrix(head, embedding, names, read_rows):
        return "another matrix than the embedding"
    return None


def _is_same_storage(head: TensorInfo, embedding: TensorInfo) -> bool:
    """Returns True if both tensors share their bytes in the file, as in pickles of tied models."""
    return head == embedding and head.offset is not None


def _is_equal_matrix(
    head: TensorInfo, embedding: TensorInfo, names: tuple[str, str], read_rows: RowReader
) -> bool:
    is_pickled = head.offset is None or embedding.offset is None  # each read loads the whole tensor
    count = head.shape[0] if head.shape else 0
    step = count if is_pickled else COMPARISON_ROWS
    return all(
        torch.equal(*(read_rows(name, start, start + step).float() for name in names))
        for start in range(0, count, max(1, step))
    )
