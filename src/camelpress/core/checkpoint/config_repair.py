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

QUANTIZATION = "quantization_config"
COMPRESSION = "compression_config"  # the name of the same key in llm-compressor's models of 2024
NUMBERS = ("bits", "group_size", "act_bits")  # keys of a quantization_config
FLAGS = ("sym", "desc_act", "is_marlin_format")  # keys of a quantization_config
PARTS = ("dynamic", "extra_config")  # keys of settings for single layers
WORDS: Mapping[Any, bool] = {"true": True, "false": False}
ROWS = 4096  # rows of two tables that are compared at a time
Rows = Callable[[str, int, int], Tensor]  # name, first row, end


class Agreement(NamedTuple):
    """A config that agrees with tensors, and a sentence for each key that was changed."""

    config: dict[str, Any]
    changes: tuple[str, ...] = ()


def agreed(
    config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], rows: Rows, path: Path
) -> Agreement:
    """Returns the config as the tensors show it to be.

    Args:
        config: as it stands in the file.
        tensors: headers.
        rows: reads some rows of a tensor.
        path: of the file, for messages.
    Raises:
        CheckpointProblem: a flag or a number of the config is something else.
    """
    quantization = _quantization(config, tensors, path)
    head = _head(quantization.config, tensors, rows, path)
    return Agreement(head.config, quantization.changes + head.changes)


def _quantization(
    config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], path: Path
) -> Agreement:
    key = QUANTIZATION if config.get(QUANTIZATION) not in (None, {}) else COMPRESSION
    rest = {name: value for name, value in config.items() if name not in (QUANTIZATION, key)}
    stated = config.get(key)
    if stated is None or stated == {}:
        return Agreement(rest)
    if not isinstance(stated, Mapping):
        return Agreement(dict(config))
    if format_detection.is_plain(tensors):
        return Agreement(rest, (_left_over(key, stated, tensors),))
    read, changes = _settings(stated, path)
    if key != QUANTIZATION:
        changes = (f"{key} is read as {QUANTIZATION}", *changes)
    if read.get("quant_method") is None and "bits" in read:
        read["quant_method"] = "gptq"
        changes += (f"{QUANTIZATION} names no quant_method, as in 2023, and is read as gptq",)
    return Agreement(rest | {QUANTIZATION: read}, changes)


def _left_over(key: str, stated: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> str:
    method = stated.get("quant_method")
    plain = next(info for name, info in tensors.items() if name.endswith(format_detection.LINEARS))
    label = f" of {method}" if method else ""
    return f"{key}{label} is left over, since the weights are plain {dtype_name(plain.dtype)}"


def _settings(stated: Mapping[str, Any], path: Path) -> Agreement:
    """Returns settings, also of single layers, in which numbers and flags have their types."""
    own = _values(stated, path)
    read, changes = own.config, own.changes
    for part in PARTS:
        rules = read.get(part)
        if isinstance(rules, Mapping):
            of_layers = {
                key: _values(values, path) if isinstance(values, Mapping) else Agreement(values)
                for key, values in rules.items()
            }
            read[part] = {key: each.config for key, each in of_layers.items()}
            changes += tuple(change for each in of_layers.values() for change in each.changes)
    return Agreement(read, tuple(dict.fromkeys(changes)))


def _values(stated: Mapping[str, Any], path: Path) -> Agreement:
    """Returns settings in which numbers and flags have their types."""
    read, changes = dict(stated), []
    for key in (*NUMBERS, *FLAGS):
        value = read.get(key)
        if value is None:
            continue
        read[key] = (_number if key in NUMBERS else _flag)(key, value, path)
        if type(value) is not type(read[key]):
            changes.append(_reading(key, value, read[key]))
    return Agreement(read, tuple(changes))


def _reading(key: str, value: Any, read: Any) -> str:
    return f"{key} is {json.dumps(value)}, and is read as {json.dumps(read)}"


def _number(key: str, value: Any, path: Path) -> int:
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


def _flag(key: str, value: Any, path: Path) -> bool:
    read = WORDS.get(value.lower()) if isinstance(value, str) else value
    if not isinstance(read, (bool, int)) or read not in (0, 1):
        raise _no_flag(key, value, path)
    return bool(read)


def _no_flag(key: str, value: Any, path: Path) -> CheckpointProblem:
    return CheckpointProblem(
        f"{path} has {key} {json.dumps(value)}, where true or false belongs",
        next_step=f"write true or false for {key}, without quotes",
    )


def _head(
    config: dict[str, Any], tensors: Mapping[str, TensorInfo], rows: Rows, path: Path
) -> Agreement:
    """Returns a config that is tied only where the embedding really is the head."""
    inner = config.get(llama.TEXT)
    if llama.TIED in config or not isinstance(inner, Mapping):
        return _tie(config, tensors, rows, path)
    text = _tie(dict(inner), tensors, rows, path)
    return Agreement(config | {llama.TEXT: text.config}, text.changes)


def _tie(
    config: dict[str, Any], tensors: Mapping[str, TensorInfo], rows: Rows, path: Path
) -> Agreement:
    stated = config.get(llama.TIED)
    if stated is None:
        return Agreement({key: value for key, value in config.items() if key != llama.TIED})
    if not isinstance(stated, bool):  # transformers refuses a text or a number, too
        raise _no_flag(llama.TIED, stated, path)
    other = _other_head(tensors, rows) if stated else None
    if not other:
        return Agreement(config)
    change = (
        f"{llama.TIED} is true, but {llama.HEAD} is {other}: it is taken for false, and the "
        "head is used; loaders differ, some would use the embedding"
    )
    return Agreement(config | {llama.TIED: False}, (change,))


def _other_head(tensors: Mapping[str, TensorInfo], rows: Rows) -> str | None:
    """Returns how the head differs from the embedding; None where it does not, or is not there."""
    if not llama.owns_head(tensors):
        return None
    names = (f"{llama.HEAD}.weight", f"{llama.EMBEDDING}.weight")
    head, embedding = (tensors.get(name) for name in names)
    if head is None:
        return "packed"
    if embedding is None or _same_bytes(head, embedding):
        return None
    if head.shape != embedding.shape or not _equal(head, embedding, names, rows):
        return "another matrix than the embedding"
    return None


def _same_bytes(one: TensorInfo, other: TensorInfo) -> bool:
    """Returns whether two names stand for one place, as in pickles of tied models."""
    return one == other and one.offset is not None


def _equal(head: TensorInfo, embedding: TensorInfo, names: tuple[str, str], rows: Rows) -> bool:
    whole = head.offset is None or embedding.offset is None  # such a tensor is read whole each time
    count = head.shape[0] if head.shape else 0
    step = count if whole else ROWS
    return all(
        torch.equal(*(rows(name, start, start + step).float() for name in names))
        for start in range(0, count, max(1, step))
    )
