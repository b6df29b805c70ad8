"""Requirements on sizes: what a kernel can tile, and over how many devices a model can be split.

An engine that holds q/k/v as one layer tiles that layer, and splits each of the three. Rows of a
layer's output are split for q, k, v, gate and up, columns of its input for o and down: there a
group must not lie on two devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from camelpress.compat.gptq_checkpoint import GptqCheckpoint, GptqLayer
from camelpress.compat.requirement import Finding, RequirementCheck, fails, passes, warns
from camelpress.core.packing.bitpacking import WORD_BITS

TENSOR_PARALLEL_SIZES = (1, 2, 4, 8, 16)
MARLIN_TILES = ((128, 64), (64, 128))  # inputs and outputs that a tile divides
STRICT_TILES = ((128, 64),)
ROW_PARALLEL = ("self_attn.o_proj", "mlp.down_proj")
FUSED_NAMES = {
    "self_attn.q_proj": "qkv_proj",
    "self_attn.k_proj": "qkv_proj",
    "self_attn.v_proj": "qkv_proj",
    "mlp.gate_proj": "gate_up_proj",
    "mlp.up_proj": "gate_up_proj",
}


class KernelTile(NamedTuple):
    """A layer as a kernel sees it on one device."""

    name: str
    inputs: int
    outputs: int


def kernel_tiles(
    families: tuple[tuple[int, int], ...], *, otherwise: str, refuses: bool
) -> RequirementCheck:
    """Every layer has a size that the kernel can tile, on one device.

    Args:
        families: divisors of inputs and outputs; one pair must fit.
        otherwise: what becomes of a layer that does not fit.
        refuses: whether that is a failure.
    """

    def check(subject: GptqCheckpoint) -> Finding:
        for tile in _tiles(subject, 1):
            if not _fits(tile, families):
                told = f"{tile.name} is {tile.inputs} by {tile.outputs}, no multiple of " + (
                    " or ".join(f"{k} by {n}" for k, n in families)
                )
                step = "use an engine without Marlin, or pad (--pad-ffn) and quantize again"
                return (fails if refuses else warns)(f"{told}; {otherwise}", step)
        return passes(f"all are multiples of {' or '.join(f'{k} by {n}' for k, n in families)}")

    return check


def size_multiples(inputs: int, outputs: int) -> RequirementCheck:
    """Every layer's sizes are multiples of these, for kernels that do not fuse."""

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
    """Groups divide the inputs: engines count scales by dividing."""

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


def tensor_parallel(
    *, repeats_kv: bool, families: tuple[tuple[int, int], ...] = ()
) -> RequirementCheck:
    """Over how many devices the model can be split.

    Args:
        repeats_kv: whether key and value heads are copied where there are fewer than devices.
        families: of tiles that must fit on each device; none where other sizes are padded.
    """

    def check(subject: GptqCheckpoint) -> Finding:
        reasons = {
            count: _split_obstacle(subject, count, repeats_kv=repeats_kv, families=families)
            for count in TENSOR_PARALLEL_SIZES
        }
        fit = [count for count in TENSOR_PARALLEL_SIZES if reasons[count] is None]
        if len(fit) == len(TENSOR_PARALLEL_SIZES):
            return passes(f"{_list(fit)} devices")
        first = next(count for count in TENSOR_PARALLEL_SIZES if reasons[count] is not None)
        step = "pad (--pad-ffn) or quantize with smaller groups to split it"
        if not fit:
            return warns(f"not even 1 device: {reasons[first]}", "see tiles")
        told = f"{_list(fit)} device{'s' * (len(fit) > 1)}, not {first}: {reasons[first]}"
        return passes(told) if len(fit) > 1 else warns(told, step)

    return check


def _split_obstacle(
    subject: GptqCheckpoint, count: int, *, repeats_kv: bool, families: tuple[tuple[int, int], ...]
) -> str | None:
    """Why a model cannot be split over so many devices."""
    if subject.heads % count:
        return f"{subject.heads} attention heads"
    shared = subject.kv_heads
    if shared % count and not (repeats_kv and count % shared == 0):
        return f"{shared} key and value heads"
    for layer in _distinct_layers(subject):
        reason = _split(layer, count, repeats_kv=repeats_kv, kv_heads=shared)
        if reason:
            return reason
    for tile in _tiles(subject, count) if families else ():
        if not _fits(tile, families):
            return f"{tile.name} would be {tile.inputs} by {tile.outputs} on each"
    return None


def _split(layer: GptqLayer, count: int, *, repeats_kv: bool, kv_heads: int) -> str | None:
    if count == 1:
        return None
    per_word = WORD_BITS // layer.bits if WORD_BITS % layer.bits == 0 else WORD_BITS
    if layer.block_name in ROW_PARALLEL:
        if layer.inputs % count:
            return f"{layer.block_name} has {layer.inputs} inputs"
        share = layer.inputs // count
        if layer.group_size != -1 and share % layer.columns:
            return (
                f"{layer.block_name} has {layer.inputs} inputs, {share / layer.columns:g} "
                "groups of "
                f"{layer.columns} on each"
            )
        return f"{layer.block_name} splits a word of codes" if share % per_word else None
    pieces = _output_shards(layer, count, repeats_kv=repeats_kv, kv_heads=kv_heads)
    if layer.outputs % pieces or layer.outputs // pieces % per_word:
        return f"{layer.block_name} has {layer.outputs} outputs, which split a word of zero points"
    return None


def _output_shards(layer: GptqLayer, count: int, *, repeats_kv: bool, kv_heads: int) -> int:
    """Into how many different pieces a layer's outputs are cut."""
    of_kv = layer.block_name in ("self_attn.k_proj", "self_attn.v_proj")
    return min(count, kv_heads) if of_kv and repeats_kv else count


def _tiles(subject: GptqCheckpoint, count: int) -> Iterator[KernelTile]:
    """What kernels get on each of so many devices, layers that are held as one added up."""
    whole: dict[tuple[str, str], list[GptqLayer]] = {}
    for layer in _distinct_layers(subject):
        key = FUSED_NAMES.get(layer.block_name, layer.block_name)
        whole.setdefault((key, f"{layer.bits} {layer.group_size}"), []).append(layer)
    for (name, _), layers in whole.items():
        if name in ROW_PARALLEL:
            yield KernelTile(name, layers[0].inputs // count, layers[0].outputs)
        else:
            outputs = sum(
                each.outputs
                // _output_shards(each, count, repeats_kv=True, kv_heads=subject.kv_heads)
                for each in layers
            )
            yield KernelTile(name, layers[0].inputs, outputs)


def _distinct_layers(subject: GptqCheckpoint) -> list[GptqLayer]:
    """One layer of each kind: blocks are alike, unless they have settings of their own."""
    found: dict[tuple[object, ...], GptqLayer] = {}
    for layer in subject.layers:
        kind = (layer.block_name, layer.bits, layer.group_size, layer.inputs, layer.outputs)
        found.setdefault(kind, layer)
    return list(found.values())


def _fits(tile: KernelTile, families: tuple[tuple[int, int], ...]) -> bool:
    return any(tile.inputs % k == 0 and tile.outputs % n == 0 for k, n in families)


def _list(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
