"""Reads the scheme of each linear layer from the quantization config of any supported tool.

GPTQModel, AutoGPTQ and auto-round write one object of settings, with exceptions in `dynamic` or
`extra_config`; llm-compressor writes groups of layers with separate settings.

Source: ModelCloud/GPTQModel 7.7.0 (quantization/config.py); intel/auto-round 0.16.1
(inference/convert_model.py, inference/backend.py); vllm-project/compressed-tensors 0.19.0
(quantization/quant_config.py, utils/match.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from camelpress.core.checkpoint import format_detection
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import CheckpointProblem
from camelpress.core.files.bounded_regex import match_regex, require_pattern_count
from camelpress.core.input_limits import MAX_PATTERNS
from camelpress.core.packing.dynamic_config import dynamic_settings
from camelpress.core.settings import describe_validation_error

GPTQ_V1, GPTQ_V2, PACK_QUANTIZED = "gptq", "gptq_v2", "pack-quantized"
COMPRESSED_TENSORS = "compressed-tensors"
SUPPORTED_BITS = (2, 3, 4, 8)
PLAIN_BITS = 16  # bits of a plain layer in a config of auto-round
# fmt: off
CHECKPOINT_FORMATS: Mapping[str, Mapping[str, str]] = {  # quant_method: its format names
    "gptq":             {GPTQ_V1: GPTQ_V1, GPTQ_V2: GPTQ_V2},
    "auto-round":       {"auto_round:auto_gptq": GPTQ_V1, "auto_round:gptqmodel": GPTQ_V2,
                         "auto_round": GPTQ_V2},
    COMPRESSED_TENSORS: {PACK_QUANTIZED: PACK_QUANTIZED},
}
# fmt: on
REGEX_PREFIX = "re:"


class QuantizationScheme(NamedTuple):
    """Packing parameters of one linear layer."""

    checkpoint_format: str
    bits: int
    group_size: int | None  # columns per group; -1: one group per row; None: not in the config
    sym: bool | None  # None: not in the config
    desc_act: bool  # True if a group may have scattered columns (activation order)


class _WeightArgs(BaseModel):
    """Fields of compressed-tensors' QuantizationArgs with an influence on dequantization."""

    model_config = ConfigDict(strict=True)

    num_bits: int
    type: Literal["int"] = "int"
    symmetric: bool = True
    strategy: Literal["group", "channel"]
    group_size: int | None = None
    actorder: str | bool | None = None


class _ConfigGroup(BaseModel):
    """A group of layers with one scheme; quantized activations are refused."""

    model_config = ConfigDict(strict=True)

    targets: list[str] = Field(max_length=MAX_PATTERNS)
    weights: _WeightArgs
    layout: str | None = Field(default=None, alias="format")
    input_activations: None = None
    output_activations: None = None


class _CompressedTensorsConfig(BaseModel):
    """A config of compressed-tensors; rotations and cache schemes are refused."""

    model_config = ConfigDict(strict=True)

    config_groups: dict[str, _ConfigGroup] = Field(max_length=MAX_PATTERNS)
    ignore: list[str] | None = Field(default=None, max_length=MAX_PATTERNS)
    kv_cache_scheme: None = None
    transform_config: dict[str, Any] | None = Field(default=None, max_length=0)
    sparsity_config: dict[str, Any] | None = Field(default=None, max_length=0)


def layer_scheme(checkpoint: Checkpoint, linear: str) -> QuantizationScheme | None:
    """Returns the scheme of a linear layer from the config; None for a plain layer.

    Args:
        checkpoint: Checkpoint with the config.
        linear: Full name of the layer.
    Raises:
        CheckpointProblem: The scheme is not supported, or the config contradicts itself.
    """
    config = checkpoint.quantization
    if config is None:
        return None
    if config.get("quant_method") == COMPRESSED_TENSORS:
        return _scheme_from_groups(checkpoint, config, linear)
    layer_config = _layer_config(config, linear)
    label = f" of {linear}" if config.get("dynamic") or config.get("extra_config") else ""
    return None if layer_config is None else _scheme_from_config(checkpoint, layer_config, label)


def default_scheme(checkpoint: Checkpoint) -> QuantizationScheme | None:
    """Returns the scheme of layers without separate settings; None for a plain checkpoint.

    Raises:
        CheckpointProblem: See `layer_scheme`.
    """
    config = checkpoint.quantization
    if config is None:
        return None
    if config.get("quant_method") == COMPRESSED_TENSORS:
        group = next(iter(_parse_groups(checkpoint, config).config_groups.values()), None)
        return None if group is None else _scheme_from_group(checkpoint, config, group, "")
    return _scheme_from_config(checkpoint, config, "")


def _scheme_from_config(
    checkpoint: Checkpoint, config: Mapping[str, Any], label: str
) -> QuantizationScheme:
    checkpoint_format, act_bits = _parse_format(checkpoint, config), config.get("act_bits")
    if isinstance(act_bits, int) and act_bits < PLAIN_BITS:
        raise CheckpointProblem(
            f"{checkpoint.folder} quantizes activations, too (act_bits {act_bits})",
            next_step="give one whose weights alone are quantized",
        )
    return QuantizationScheme(
        checkpoint_format,
        _parse_bits(checkpoint, config.get("bits"), label),
        _value_of_type(config.get("group_size"), int),
        _value_of_type(config.get("sym"), bool),
        bool(config.get("desc_act")),
    )


def _layer_config(config: Mapping[str, Any], linear: str) -> Mapping[str, Any] | None:
    """Returns the settings of one layer in a config of GPTQModel, AutoGPTQ or auto-round."""
    extra = config.get("extra_config")
    if not extra:
        return dynamic_settings(config, linear)
    try:
        require_pattern_count(extra)
        matches = (
            values for key, values in extra.items() if match_regex(key, linear, anywhere=True)
        )
        overrides = extra.get(linear) or next(matches, None) or {}
        bits = overrides.get("bits")
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointProblem(
            f"the quantization_config has an extra_config that cannot be read ({error})",
            next_step="compare it with the config of the original checkpoint",
        ) from error
    return None if isinstance(bits, int) and bits >= PLAIN_BITS else {**config, **overrides}


def _scheme_from_groups(
    checkpoint: Checkpoint, config: Mapping[str, Any], linear: str
) -> QuantizationScheme | None:
    groups = _parse_groups(checkpoint, config)
    if _first_match(linear, groups.ignore or ()):
        return None
    by_target = {
        target: group for group in groups.config_groups.values() for target in group.targets
    }
    target = _first_match(linear, by_target)
    if target is None:
        return None
    return _scheme_from_group(checkpoint, config, by_target[target], f" of {linear}")


def _scheme_from_group(
    checkpoint: Checkpoint, config: Mapping[str, Any], group: _ConfigGroup, label: str
) -> QuantizationScheme:
    weights = group.weights
    format_name = group.layout or config.get("format")
    return QuantizationScheme(
        _parse_format(checkpoint, {"quant_method": COMPRESSED_TENSORS, "format": format_name}),
        _parse_bits(checkpoint, weights.num_bits, label),
        -1 if weights.strategy == "channel" else weights.group_size,
        weights.symmetric,
        weights.actorder in (True, "group", "dynamic"),
    )


def _parse_groups(checkpoint: Checkpoint, config: Mapping[str, Any]) -> _CompressedTensorsConfig:
    try:
        return _CompressedTensorsConfig.model_validate(dict(config))
    except ValidationError as error:
        raise CheckpointProblem(
            f"{checkpoint.folder / 'config.json'} has a quantization_config that is not read here "
            f"({describe_validation_error(error)})",
            next_step="give one whose weights alone are quantized, to integers, by group or row",
        ) from error


def _first_match(linear: str, targets: Iterable[str]) -> str | None:
    """Returns the first target for a layer: names, then regular expressions, then "Linear"."""
    for target in sorted(targets, key=lambda name: (name.startswith(REGEX_PREFIX), name)):
        if target == linear:
            return target
        if target.startswith(REGEX_PREFIX) and _matches(target, linear):
            return target
    return "Linear" if "Linear" in targets else None


def _matches(target: str, linear: str) -> bool:
    try:
        return match_regex(target.removeprefix(REGEX_PREFIX), linear)
    except ValueError as error:
        raise CheckpointProblem(
            f"the quantization_config has a target {target!r} that cannot be read ({error})",
            next_step="compare it with the config of the original checkpoint",
        ) from error


def _parse_format(checkpoint: Checkpoint, config: Mapping[str, Any]) -> str:
    method = config.get("quant_method")
    if method is None:
        raise CheckpointProblem(
            f"{checkpoint.folder / 'config.json'} has a quantization_config without quant_method",
            next_step="write there which tool packed the weights, such as "
            '"quant_method": "gptq", "bits": 4',
        )
    method = str(method).removeprefix("intel/")
    name = config.get("packing_format") or config.get("checkpoint_format") or config.get("format")
    if config.get("is_marlin_format"):
        name = "marlin"
    checkpoint_format = CHECKPOINT_FORMATS.get(method, {}).get(
        GPTQ_V1 if name is None else str(name)
    )
    if checkpoint_format is None:
        raise CheckpointProblem(
            f"{checkpoint.folder} is quantized as {method}{f'/{name}' if name else ''}",
            next_step=f"give a checkpoint of {format_detection.READABLE_FORMATS}",
        )
    return checkpoint_format


def _parse_bits(checkpoint: Checkpoint, bits: object, label: str) -> int:
    if not isinstance(bits, int) or bits not in SUPPORTED_BITS:
        raise CheckpointProblem(
            f"{checkpoint.folder} has {bits} bits per weight{label}",
            next_step=f"use one of {SUPPORTED_BITS}",
        )
    return bits


def _value_of_type(value: Any, kind: type) -> Any:
    return value if isinstance(value, kind) else None
