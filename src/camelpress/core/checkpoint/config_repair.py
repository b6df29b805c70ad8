"""A config held against the tensors beside it: where they contradict each other, tensors win.

A loader that believes the config runs another model, or none. So a checkpoint is read with a config
that agrees with its tensors, every change has a sentence, and every output has the changed config.
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
COMPRESSION_CONFIG = (
    "compression_config"  # the name of the same key in llm-compressor's models of 2024
)
INTEGER_KEYS = ("bits", "group_size", "act_bits")  # keys of a quantization_config
BOOLEAN_KEYS = ("sym", "desc_act", "is_marlin_format")  # keys of a quantization_config
LAYER_OVERRIDE_KEYS = ("dynamic", "extra_config")  # keys of settings for single layers
BOOLEAN_WORDS: Mapping[Any, bool] = {"true": True, "false": False}
COMPARISON_ROWS = 4096  # rows of two tables that are compared at a time
RowReader = Callable[[str, int, int], Tensor]  # name, first row, end


class ConfigRepair(NamedTuple):
    """A config that agrees with tensors, and a sentence for each key that was changed."""

    config: dict[str, Any]
    changes: tuple[str, ...] = ()


def repair_config(
    config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], rows: RowReader, path: Path
) -> ConfigRepair:
    """Returns the config as the tensors show it to be.

    Args:
        config: as it stands in the file.
        tensors: headers.
        rows: reads some rows of a tensor.
        path: of the file, for messages.
    Raises:
        CheckpointProblem: a flag or a number of the config is something else.
    """
    quantization = _repair_quantization(config, tensors, path)
    head = _repair_head(quantization.config, tensors, rows, path)
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
    stated = config.get(key)
    if stated is None or stated == {}:
        return ConfigRepair(rest)
    if not isinstance(stated, Mapping):
        return ConfigRepair(dict(config))
    if format_detection.has_plain_linears(tensors):
        return ConfigRepair(rest, (_describe_leftover(key, stated, tensors),))
    read, changes = _repair_types(stated, path)
    if key != QUANTIZATION_CONFIG:
        changes = (f"{key} is read as {QUANTIZATION_CONFIG}", *changes)
    if read.get("quant_method") is None and "bits" in read:
        read["quant_method"] = "gptq"
        changes += (
            f"{QUANTIZATION_CONFIG} names no quant_method, as in 2023, and is read as gptq",
        )
    return ConfigRepair(rest | {QUANTIZATION_CONFIG: read}, changes)


def _describe_leftover(
    key: str, stated: Mapping[str, Any], tensors: Mapping[str, TensorInfo]
) -> str:
    method = stated.get("quant_method")
    plain = next(
        info for name, info in tensors.items() if name.endswith(format_detection.LINEAR_SUFFIXES)
    )
    label = f" of {method}" if method else ""
    return f"{key}{label} is left over, since the weights are plain {dtype_name(plain.dtype)}"


def _repair_types(stated: Mapping[str, Any], path: Path) -> ConfigRepair:
    """Returns settings, also of single layers, in which numbers and flags have their types."""
    own = _repair_value_types(stated, path)
    read, changes = own.config, own.changes
    for part in LAYER_OVERRIDE_KEYS:
        rules = read.get(part)
        if isinstance(rules, Mapping):
            of_layers = {
                key: _repair_value_types(values, path)
                if isinstance(values, Mapping)
                else ConfigRepair(values)
                for key, values in rules.items()
            }
            read[part] = {key: each.config for key, each in of_layers.items()}
            changes += tuple(change for each in of_layers.values() for change in each.changes)
    return ConfigRepair(read, tuple(dict.fromkeys(changes)))


def _repair_value_types(stated: Mapping[str, Any], path: Path) -> ConfigRepair:
    """Returns settings in which numbers and flags have their types."""
    read, changes = dict(stated), []
    for key in (*INTEGER_KEYS, *BOOLEAN_KEYS):
        value = read.get(key)
        if value is None:
            continue
        read[key] = (_parse_integer if key in INTEGER_KEYS else _parse_boolean)(key, value, path)
        if type(value) is not type(read[key]):
            changes.append(_describe_change(key, value, read[key]))
    return ConfigRepair(read, tuple(changes))


def _describe_change(key: str, value: Any, read: Any) -> str:
    return f"{key} is {json.dumps(value)}, and is read as {json.dumps(read)}"


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
    read = BOOLEAN_WORDS.get(value.lower()) if isinstance(value, str) else value
    if not isinstance(read, (bool, int)) or read not in (0, 1):
        raise _no_flag(key, value, path)
    return bool(read)


def _no_flag(key: str, value: Any, path: Path) -> CheckpointProblem:
    return CheckpointProblem(
        f"{path} has {key} {json.dumps(value)}, where true or false belongs",
        next_step=f"write true or false for {key}, without quotes",
    )


def _repair_head(
    config: dict[str, Any], tensors: Mapping[str, TensorInfo], rows: RowReader, path: Path
) -> ConfigRepair:
    """Returns a config that is tied only where the embedding really is the head."""
    inner = config.get(llama.TEXT_CONFIG_KEY)
    if llama.TIE_EMBEDDINGS_KEY in config or not isinstance(inner, Mapping):
        return _repair_tie(config, tensors, rows, path)
    text = _repair_tie(dict(inner), tensors, rows, path)
    return ConfigRepair(config | {llama.TEXT_CONFIG_KEY: text.config}, text.changes)


def _repair_tie(
    config: dict[str, Any], tensors: Mapping[str, TensorInfo], rows: RowReader, path: Path
) -> ConfigRepair:
    stated = config.get(llama.TIE_EMBEDDINGS_KEY)
    if stated is None:
        return ConfigRepair(
            {key: value for key, value in config.items() if key != llama.TIE_EMBEDDINGS_KEY}
        )
    if not isinstance(stated, bool):  # transformers refuses a text or a number, too
        raise _no_flag(llama.TIE_EMBEDDINGS_KEY, stated, path)
    other = _head_difference(tensors, rows) if stated else None
    if not other:
        return ConfigRepair(config)
    change = (
        f"{llama.TIE_EMBEDDINGS_KEY} is true, but {llama.HEAD_NAME} is {other}: it is taken "
        "for false, and the "
        "head is used; loaders differ, some would use the embedding"
    )
    return ConfigRepair(config | {llama.TIE_EMBEDDINGS_KEY: False}, (change,))


def _head_difference(tensors: Mapping[str, TensorInfo], rows: RowReader) -> str | None:
    """Returns how the head differs from the embedding; None where it does not, or is not there."""
    if not llama.has_head(tensors):
        return None
    names = (f"{llama.HEAD_NAME}.weight", f"{llama.EMBEDDING_NAME}.weight")
    head, embedding = (tensors.get(name) for name in names)
    if head is None:
        return "packed"
    if embedding is None or _is_same_storage(head, embedding):
        return None
    if head.shape != embedding.shape or not _is_equal_matrix(head, embedding, names, rows):
        return "another matrix than the embedding"
    return None


def _is_same_storage(one: TensorInfo, other: TensorInfo) -> bool:
    """Returns whether two names stand for one place, as in pickles of tied models."""
    return one == other and one.offset is not None


def _is_equal_matrix(
    head: TensorInfo, embedding: TensorInfo, names: tuple[str, str], rows: RowReader
) -> bool:
    whole = head.offset is None or embedding.offset is None  # such a tensor is read whole each time
    count = head.shape[0] if head.shape else 0
    step = count if whole else COMPARISON_ROWS
    return all(
        torch.equal(*(rows(name, start, start + step).float() for name in names))
        for start in range(0, count, max(1, step))
    )
