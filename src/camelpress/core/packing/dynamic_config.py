r"""Settings of single layers in the `dynamic` object of a quantization config.

    "+:^model\.layers\.(?:0|3)\.mlp\.down_proj$": {"bits": 8, "group_size": 32, "sym": true}
    "-:^model\.layers\.1\.self_attn\.o_proj$": {}

A key is a regular expression for the full name of a layer, matched from its beginning; `-:` leaves
the layer plain, `+:` or no prefix overrides the common settings. The first matching key counts.
The keys written here match exactly their layers, so their order is irrelevant.

Some loaders fuse q/k/v, or gate and up, into one layer with another name: a rule for all of its
parts also covers that name. Such a loader cannot read a checkpoint with different rules for the
parts.

Source: ModelCloud/GPTQModel f4c327a (dynamic_get); vllm-project/vllm, gptq_utils.py
(get_dynamic_override). Both read it this way.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from camelpress.core import llama
from camelpress.core.errors import CheckpointProblem
from camelpress.core.files.bounded_regex import match_regex, require_pattern_count

SKIP_PREFIX = "-:"
OVERRIDE_PREFIX = "+:"
DynamicRules = dict[str, dict[str, Any]]


def dynamic_settings(quantization: Mapping[str, Any], layer: str) -> Mapping[str, Any] | None:
    """Returns the settings of one layer; None for a plain layer.

    Args:
        quantization: Quantization config of the checkpoint.
        layer: Full name of the layer.
    Raises:
        CheckpointProblem: `dynamic` is not a mapping of regular expressions to settings.
    """
    rules = quantization.get("dynamic") or {}
    try:
        require_pattern_count(rules)
        for key, values in rules.items():
            if match_regex(key.removeprefix(SKIP_PREFIX).removeprefix(OVERRIDE_PREFIX), layer):
                return None if key.startswith(SKIP_PREFIX) else {**quantization, **values}
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointProblem(
            f"the quantization_config has a dynamic that cannot be read ({error})",
            next_step="compare it with the config of the original checkpoint",
        ) from error
    return quantization


def dynamic_rules(
    common: Mapping[str, Any], layers: Mapping[str, Mapping[str, Any] | None], blocks: int
) -> DynamicRules:
    """Builds the `dynamic` object of a checkpoint; empty if all layers share the same settings.

    Args:
        common: Settings of all layers without a rule.
        layers: Full name of each linear layer to its settings; None for a plain layer.
        blocks: Number of decoder blocks of the model.
    """
    numbers: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number in range(blocks):
        block = llama.BLOCK_NAME.format(number)
        block_layers = {linear.name: layers[f"{block}.{linear.name}"] for linear in llama.LINEARS}
        for fused_name, input_name in llama.FUSED_LINEARS.items():
            first, *rest = (block_layers[name] for name in llama.linears_with_input(input_name))
            if all(values == first for values in rest):
                block_layers[fused_name] = first
        for name, values in block_layers.items():
            if values != common:
                numbers[name, json.dumps(values)].append(number)
    rules: DynamicRules = {}
    for (name, text), block_numbers in numbers.items():
        values = json.loads(text)
        key = layer_pattern(name, block_numbers, blocks)
        rules[f"{SKIP_PREFIX if values is None else OVERRIDE_PREFIX}{key}"] = values or {}
    return rules


def layer_pattern(name: str, block_numbers: Sequence[int], blocks: int) -> str:
    """Returns the regular expression for exactly one layer in the given blocks.

    Args:
        name: Name of the layer in its block.
        block_numbers: Numbers of the blocks.
        blocks: Number of decoder blocks of the model.
    """
    is_everywhere = len(block_numbers) == blocks
    numbers = r"\d+" if is_everywhere else f"(?:{'|'.join(map(str, block_numbers))})"
    layer = re.escape(f"{llama.BLOCK_NAME}.{name}").replace(re.escape("{}"), numbers)
    return f"^{layer}$"
