r"""Layers with settings of their own, as the `dynamic` of a quantization config lists them.

    "+:^model\.layers\.(?:0|3)\.mlp\.down_proj$": {"bits": 8, "group_size": 32, "sym": true}
    "-:^model\.layers\.1\.self_attn\.o_proj$": {}

A key is a regular expression for the full name of a layer, matched from its beginning; `-:` leaves
the layer plain, `+:` or nothing gives it what stands there instead of what holds for all. Of keys
that match, the first counts and the others do not. What is written here matches exactly the layers
it means, so that nothing hangs on the order.

Some loaders hold q/k/v, or gate and up, as one layer under a name of its own: rules that hold for
all of them name that one too. Where they differ, such a loader cannot read the checkpoint.

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
    """The settings that hold for one layer, by its full name; None if it is plain.

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
    """The `dynamic` of a checkpoint; empty where all layers are alike.

    Args:
        common: what holds for all.
        layers: what holds for each linear layer, by its full name; None if it is plain.
        blocks: of the model.
    """
    numbers: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number in range(blocks):
        block = llama.BLOCK_NAME.format(number)
        own = {linear.name: layers[f"{block}.{linear.name}"] for linear in llama.LINEARS}
        for fused, stage in llama.FUSED_LINEARS.items():
            first, *others = (own[name] for name in llama.linears_with_input(stage))
            if all(each == first for each in others):
                own[fused] = first
        for name, values in own.items():
            if values != common:
                numbers[name, json.dumps(values)].append(number)
    found: DynamicRules = {}
    for (name, told), of_blocks in numbers.items():
        values = json.loads(told)
        key = layer_pattern(name, of_blocks, blocks)
        found[f"{SKIP_PREFIX if values is None else OVERRIDE_PREFIX}{key}"] = values or {}
    return found


def layer_pattern(name: str, of_blocks: Sequence[int], blocks: int) -> str:
    """The regular expression for one layer in some of the blocks, and for nothing else."""
    which = r"\d+" if len(of_blocks) == blocks else f"(?:{'|'.join(map(str, of_blocks))})"
    layer = re.escape(f"{llama.BLOCK_NAME}.{name}").replace(re.escape("{}"), which)
    return f"^{layer}$"
