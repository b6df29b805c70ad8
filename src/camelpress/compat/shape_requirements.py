"""Requirements on sizes: kernel tiles and tensor parallelism.

An engine that fuses q/k/v into one layer tiles the fused layer, but splits each of the three over
devices. It splits q, k, v, gate and up by outputs, and o and down by inputs; for the latter, a
group must not span two devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from camelpress.compat.gptq_checkpoint import GptqCheckpoint, GptqLayer
from camelpress.compat.requirement import Finding, RequirementCheck, fails, passes, warns
from camelpress.core.packing.bitpacking import WORD_BITS

TENSOR_PARALLEL_SIZES = (1, 2, 4, 8, 16)  # numbers of devices
MARLIN_TILES = ((128, 64), (64, 128))  # divisors of inputs and outputs, as alternatives
STRICT_TILES = ((128, 64),)
ROW_PARALLEL = ("self_attn.o_proj", "mlp.down_proj")
FUSED_NAMES = {
    "self_attn.q_proj": "qkv_proj",
    "self_attn.k_proj": "qkv_proj",
    "self_attn.v_proj": "qkv_proj",
    "mlp.gate_proj": "gate_up_proj",
    "mlp.up_proj": "gate_up_proj",
}


Tiles = tuple[tuple[int, int], ...]


class DeviceLayer(NamedTuple):
    """One device's share of a layer, after fusion, as its kernel computes it."""

    name: str
    inputs: int
    outputs: int


def kernel_tiles(tiles: Tiles, *, consequence: str, refuses: bool) -> RequirementCheck:
    """Requires sizes the kernel can tile on one device.

    Args:
        tiles: divisors of inputs and outputs; one pair must fit.
        consequence: behaviour of the engine for a layer that does not fit.
        refuses: true if that counts as a failure.
    """
    sizes = " or ".join(f"{inputs} by {outputs}" for inputs, outputs in tiles)

    def check(subject: GptqCheckpoint) -> Finding:
        for layer in _device_layers(subject, 1):
            if not _fits(layer, tiles):
                reason = (
                    f"{layer.name} is {layer.inputs} by {layer.outputs}, no multiple of {sizes}"
                )
                next_step = "use an engine without Marlin, or pad (--pad-ffn) and quantize again"
                return (fails if refuses else warns)(f"{reason}; {consequence}", next_step)
        return passes(f"all are multiples of {sizes}")

    return check


def size_multiples(inputs: int, outputs: int) -> RequirementCheck:
    """Requires layers with multiples of `inputs` and `outputs`, without fusion."""

    def check(subject: GptqCheckpoint) -> Finding:
        for layer in subject.layers:
            if layer.inputs % inputs or layer.outputs % outputs:
                return fails(
                    f"{layer.name} is {layer.inputs} by {layer.outputs}, no multiple of {inputs} "
                    f"by {outputs}",
                    "pad the model and quantize again, or use another engine",
                )
        return passes(f"all are multiples of {inputs} by {outputs}")

    return check


def whole_groups() -> RequirementCheck:
    """Requires a group size that divides the inputs: engines count scales by dividing."""

    def check(subject: GptqCheckpoint) -> Finding:
        for layer in subject.layers:
            if layer.inputs % layer.columns:
                return fails(
                    f"{layer.name} has {layer.inputs} inputs, no multiple of its groups of "
                    f"{layer.columns}",
                    "quantize again with a --group-size that divides all widths",
                )
        return passes("groups divide all widths")

    return check


def tensor_parallel(*, repeats_kv: bool, tiles: Tiles = ()) -> RequirementCheck:
    """Requires heads, groups and tiles to split evenly over several devices.

    Args:
        repeats_kv: true if key and value heads are copied when there are more devices than heads.
        tiles: divisors of inputs and outputs on each device; empty if the engine pads.
    """

    def check(subject: GptqCheckpoint) -> Finding:
        obstacles = {
            count: _split_obstacle(subject, count, repeats_kv=repeats_kv, tiles=tiles)
            for count in TENSOR_PARALLEL_SIZES
        }
        counts = [count for count, obstacle in obstacles.items() if obstacle is None]
        if len(counts) == len(TENSOR_PARALLEL_SIZES):
            return passes(f"{_list(counts)} devices")
        limit = next(count for count, obstacle in obstacles.items() if obstacle is not None)
        if not counts:
            return warns(f"not even 1 device: {obstacles[limit]}", "see tiles")
        plural = "s" * (len(counts) > 1)
        reason = f"{_list(counts)} device{plural}, not {limit}: {obstacles[limit]}"
        if len(counts) > 1:
            return passes(reason)
        return warns(reason, "pad (--pad-ffn) or quantize with smaller groups to split it")

    return check


def _split_obstacle(
    subject: GptqCheckpoint, count: int, *, repeats_kv: bool, tiles: Tiles
) -> str | None:
    """Returns the first obstacle to a split over `count` devices, if any."""
    if subject.heads % count:
        return f"{subject.heads} attention heads"
    kv_heads = subject.kv_heads
    if kv_heads % count and not (repeats_kv and count % kv_heads == 0):
        return f"{kv_heads} key and value heads"
    for layer in _distinct_layers(subject):
        obstacle = _layer_obstacle(layer, count, repeats_kv=repeats_kv, kv_heads=kv_heads)
        if obstacle:
            return obstacle
    for share in _device_layers(subject, count) if tiles else ():
        if not _fits(share, tiles):
            return f"{share.name} would be {share.inputs} by {share.outputs} on each"
    return None


def _layer_obstacle(layer: GptqLayer, count: int, *, repeats_kv: bool, kv_heads: int) -> str | None:
    """Returns the reason why a layer cannot be split over `count` devices, if any."""
    if count == 1:
        return None
    word_codes = WORD_BITS // layer.bits if WORD_BITS % layer.bits == 0 else WORD_BITS
    if layer.block_name in ROW_PARALLEL:
        if layer.inputs % count:
            return f"{layer.block_name} has {layer.inputs} inputs"
        share = layer.inputs // count
        if layer.group_size != -1 and share % layer.columns:
            return (
                f"{layer.block_name} has {layer.inputs} inputs, {share / layer.columns:g} "
                f"groups of {layer.columns} on each"
            )
        return f"{layer.block_name} splits a word of codes" if share % word_codes else None
    shards = _output_shards(layer, count, repeats_kv=repeats_kv, kv_heads=kv_heads)
    if layer.outputs % shards or layer.outputs // shards % word_codes:
        return f"{layer.block_name} has {layer.outputs} outputs, which split a word of zero points"
    return None


def _output_shards(layer: GptqLayer, count: int, *, repeats_kv: bool, kv_heads: int) -> int:
    """Returns the number of different shards of a layer's outputs."""
    is_kv = layer.block_name in ("self_attn.k_proj", "self_attn.v_proj")
    return min(count, kv_heads) if is_kv and repeats_kv else count


def _device_layers(subject: GptqCheckpoint, count: int) -> Iterator[DeviceLayer]:
    """Yields the layers of each of `count` devices, with fused layers added up."""
    parts: dict[tuple[str, str], list[GptqLayer]] = {}
    for layer in _distinct_layers(subject):
        key = FUSED_NAMES.get(layer.block_name, layer.block_name)
        parts.setdefault((key, f"{layer.bits} {layer.group_size}"), []).append(layer)
    for (name, _), layers in parts.items():
        if name in ROW_PARALLEL:
            yield DeviceLayer(name, layers[0].inputs // count, layers[0].outputs)
        else:
            outputs = sum(
                layer.outputs
                // _output_shards(layer, count, repeats_kv=True, kv_heads=subject.kv_heads)
                for layer in layers
            )
            yield DeviceLayer(name, layers[0].inputs, outputs)


def _distinct_layers(subject: GptqCheckpoint) -> list[GptqLayer]:
    """Returns one layer of each kind: most blocks have the same settings and sizes."""
    layers: dict[tuple[object, ...], GptqLayer] = {}
    for layer in subject.layers:
        kind = (layer.block_name, layer.bits, layer.group_size, layer.inputs, layer.outputs)
        layers.setdefault(kind, layer)
    return list(layers.values())


def _fits(layer: DeviceLayer, tiles: Tiles) -> bool:
    return any(
        layer.inputs % inputs == 0 and layer.outputs % outputs == 0 for inputs, outputs in tiles
    )


def _list(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
