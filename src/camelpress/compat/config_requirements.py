"""Requirements on the config: keys, bits, groups, order, format, exceptions, head.

Each function returns a check for an engine's table; its arguments state the engine's behaviour.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from camelpress.compat.gptq_checkpoint import GptqCheckpoint, GptqLayer
from camelpress.compat.requirement import Finding, RequirementCheck, fails, passes, warns
from camelpress.core import llama
from camelpress.core.errors import CheckpointProblem
from camelpress.core.files.json_files import read_json
from camelpress.core.packing.dynamic_config import dynamic_settings
from camelpress.core.packing.packed_checks import REPLACEMENT_ADVICE

CONFIG_COPY = "quantize_config.json"
QUANTIZE_AGAIN = "quantize again with"
MARLIN_BITS = (4, 8)
MARLIN_GROUPS = (-1, 32, 64, 128)


def config_keys(*required: str, fast: tuple[str, ...] = ()) -> RequirementCheck:
    """Requires keys of quantization_config.

    Args:
        required: keys the engine does not load without.
        fast: keys the engine reads as false if they are missing, so that it runs without Marlin.
    """

    def check(subject: GptqCheckpoint) -> Finding:
        missing_keys = [key for key in required if key not in subject.quantization]
        if missing_keys:
            return fails(
                f"quantization_config lacks {', '.join(missing_keys)}",
                "add the settings of the quantization to config.json",
            )
        slow_keys = [key for key in fast if key not in subject.quantization]
        if slow_keys:
            return warns(
                f"quantization_config lacks {', '.join(slow_keys)}, read as false: no Marlin",
                "add it to config.json",
            )
        return passes(f"{', '.join(required + fast) or 'none needed'}")

    return check


def config_copy() -> RequirementCheck:
    """Requires quantize_config.json, read by some loaders, to agree with config.json."""

    def check(subject: GptqCheckpoint) -> Finding:
        path = subject.checkpoint.folder / CONFIG_COPY
        if not path.is_file():
            return warns(
                f"there is no {CONFIG_COPY}, which older loaders read",
                "copy quantization_config of config.json into it",
            )
        try:
            is_equal = read_json(path) == dict(subject.quantization)
        except CheckpointProblem as problem:
            return fails(problem.message, problem.next_step)
        if not is_equal:
            return fails(
                f"{CONFIG_COPY} differs from quantization_config in config.json, and "
                "loaders read either",
                "copy the right one over the other",
            )
        return passes(f"{CONFIG_COPY} agrees with config.json")

    return check


def layer_tensors() -> RequirementCheck:
    """Requires all tensors of every linear layer; some engines never report a missing one."""

    def check(subject: GptqCheckpoint) -> Finding:
        if not subject.layers:
            return fails("there is no packed layer", "give the quantized checkpoint")
        names = subject.missing_tensors
        if names:
            return fails(
                f"{len(names)} tensors are missing, first {names[0]!r}",
                REPLACEMENT_ADVICE,
            )
        if subject.mismatched_tensors:
            return fails(
                f"{subject.mismatched_tensors[0]!r} does not fit the other tensors of its layer",
                REPLACEMENT_ADVICE,
            )
        return passes(f"{len(subject.layers)} packed layers, all complete")

    return check


def bit_widths(
    *, sym: Collection[int], asym: Collection[int], fast: Collection[int] = ()
) -> RequirementCheck:
    """Requires bits with a kernel in the engine.

    Args:
        sym: bits of symmetric layers with a kernel.
        asym: bits of asymmetric layers with a kernel.
        fast: bits of symmetric layers that Marlin computes; empty if no layer runs slower.
    """

    def check(subject: GptqCheckpoint) -> Finding:
        for layer in subject.layers:
            if layer.bits not in (sym if layer.sym else asym):
                kernels = [f"{bits} sym" for bits in sorted(sym)]
                kernels += [f"{bits} asym" for bits in sorted(asym)]
                return fails(
                    f"{_describe_layer(layer)}; the engine supports {', '.join(kernels)}",
                    f"{QUANTIZE_AGAIN} --bits 4 --sym"
                    if 4 in sym
                    else f"{QUANTIZE_AGAIN} --bits {min(sym)}",
                )
        slow_layers = [
            layer for layer in subject.layers if fast and not (layer.sym and layer.bits in fast)
        ]
        if slow_layers:
            return warns(
                f"{_describe_layer(slow_layers[0])}: computed without Marlin, slower",
                f"{QUANTIZE_AGAIN} --bits 4 --sym for speed",
            )
        return passes(_describe_layer(subject.layers[0], "all" if subject.is_uniform else "first"))

    return check


def group_sizes(allowed: Collection[int], *, slower: bool = False) -> RequirementCheck:
    """Requires group sizes supported by Marlin.

    Args:
        allowed: group sizes of Marlin, in columns; -1 for one group a row.
        slower: true if other kernels compute other sizes; false if the engine refuses them.
    """

    def check(subject: GptqCheckpoint) -> Finding:
        for layer in subject.layers:
            if layer.group_size not in allowed:
                reason = (
                    f"{layer.name} has groups of {layer.group_size}; "
                    f"Marlin supports {_list(allowed)}"
                )
                next_step = f"{QUANTIZE_AGAIN} --group-size 128"
                if slower:
                    return warns(f"{reason}, other kernels compute it", next_step)
                return fails(reason, next_step)
        return passes(_list({layer.group_size for layer in subject.layers}))

    return check


def power_of_two_groups() -> RequirementCheck:
    """Requires the group size found by doubling until the groups cover all columns."""

    def check(subject: GptqCheckpoint) -> Finding:
        for layer in subject.layers:
            count = -(-layer.inputs // layer.columns)
            size = 1
            while size * count < layer.inputs:
                size *= 2
            if count > 1 and size != layer.columns:
                return fails(
                    f"{layer.name} has {count} groups of {layer.columns}, read as groups of {size}",
                    f"{QUANTIZE_AGAIN} --group-size 128",
                )
        return passes(_list({layer.group_size for layer in subject.layers}))

    return check


def column_order(*, reads: bool, needs_flag: bool = True) -> RequirementCheck:
    """Requires neighbouring columns in each group, unless the engine reads their order.

    Args:
        reads: true if the engine reads g_idx.
        needs_flag: true if the engine reads g_idx only where `desc_act` is true.
    """

    def check(subject: GptqCheckpoint) -> Finding:
        desc_act = subject.quantization.get("desc_act") is True
        name = next((values.name for values in subject.values if values.has_act_order), None)
        if name is None:
            if desc_act and needs_flag:
                return warns(
                    "desc_act is true although all columns are in order: slower, for nothing",
                    "write desc_act: false into config.json and quantize_config.json",
                )
            return passes(
                "g_idx is in order, desc_act false" if not desc_act else "g_idx is in order"
            )
        if not reads or (needs_flag and not desc_act):
            reason = "does not read g_idx" if not reads else "reads g_idx only if desc_act is true"
            return fails(
                f"{name} has its columns out of order, and the engine {reason}: wrong weights",
                f"{QUANTIZE_AGAIN} camelpress, which keeps groups together",
            )
        return warns(
            f"{name} has its columns out of order: slower", f"{QUANTIZE_AGAIN} desc_act false"
        )

    return check


def checkpoint_format(
    *, reads_v2: bool, reads_zeros: bool, marlin: Collection[int] = ()
) -> RequirementCheck:
    """Requires zero points stored as the engine reads them: minus one (gptq, v1) or as is (v2).

    Args:
        reads_v2: true if the engine distinguishes the two formats.
        reads_zeros: true if the engine reads zero points; Marlin ignores those of symmetric layers.
        marlin: bits of symmetric layers with ignored zero points.
    """

    def check(subject: GptqCheckpoint) -> Finding:
        name = subject.quantization.get("checkpoint_format", "gptq")
        if name not in ("gptq", "gptq_v2"):
            return fails(
                f"checkpoint_format is {name!r}", f"{QUANTIZE_AGAIN} camelpress, which writes v1"
            )
        if name == "gptq" or reads_v2:
            return passes(name)
        is_ignored = not reads_zeros or all(
            layer.sym and layer.bits in marlin for layer in subject.layers
        )
        if is_ignored:
            return passes(f"{name}; zero points of symmetric layers are not read")
        return fails(
            f"{name} is read as gptq, so every zero point is off by one",
            f"{QUANTIZE_AGAIN} camelpress, which writes v1",
        )

    return check


def layer_overrides(
    *, reads: bool, scans: bool = False, sizes_from_tensors: bool = False
) -> RequirementCheck:
    """Requires the engine to support layers with their own settings (`dynamic`).

    Args:
        reads: true if the engine reads `dynamic` and fuses q, k and v, and gate and up.
        scans: true if the engine finds unpacked layers by their files.
        sizes_from_tensors: true if the engine takes sizes from the tensors and ignores `dynamic`.
    """

    def check(subject: GptqCheckpoint) -> Finding:
        if subject.is_uniform:
            return passes("none: all layers have the same settings")
        if sizes_from_tensors:
            return passes("not read; sizes are taken from the tensors, plain layers are plain")
        if not reads:
            culprit = subject.plain_linears[0] if subject.plain_linears else "dynamic"
            return fails(
                f"{culprit}: the engine reads no settings of single layers",
                f"{QUANTIZE_AGAIN} one setting for all, without quantize.modules",
            )
        unlisted_names = [
            name for name in subject.plain_linears if dynamic_settings(subject.quantization, name)
        ]
        if unlisted_names and not scans:
            return fails(
                f"{unlisted_names[0]} is plain, and the config has no rule for it",
                "add a rule with the prefix -: to dynamic",
            )
        difference = _fused_layer_difference(subject)
        if difference:
            return fails(
                f"{difference}, which the engine holds as one layer",
                "give all of them the same settings, and name the fused layer in dynamic",
            )
        return passes(f"{len(subject.quantization.get('dynamic') or {})} rules")

    return check


def output_head(*, packs: bool) -> RequirementCheck:
    """Requires an output projection, packed or plain as `lm_head` of the config states.

    Args:
        packs: true if the engine loads a packed output projection.
    """

    def check(subject: GptqCheckpoint) -> Finding:
        has_head = llama.has_head(subject.checkpoint.tensors)
        if not has_head and not llama.is_tied(subject.config):
            return fails("lm_head is missing, and would be filled with noise", REPLACEMENT_ADVICE)
        is_file_tied = llama.is_tied(subject.checkpoint.file_config)
        if has_head and is_file_tied > llama.is_tied(subject.config):
            return fails(
                f"lm_head is no copy of the embedding, and {llama.TIE_EMBEDDINGS_KEY} is true: "
                "the embedding may be used",
                f"write {llama.TIE_EMBEDDINGS_KEY}: false into config.json",
            )
        flag = bool(subject.quantization.get("lm_head", False))
        if flag != subject.packed_head:
            kind = "packed" if subject.packed_head else "plain"
            return fails(
                f"lm_head is {kind}, and quantization_config says lm_head: {str(flag).lower()}",
                "correct lm_head in config.json",
            )
        if flag and not packs:
            return fails(
                "lm_head is packed, and is read plain", f"{QUANTIZE_AGAIN} a plain lm_head"
            )
        return passes("packed" if flag else "plain")

    return check


def vocabulary_padding(handling: str) -> RequirementCheck:
    """Reports how the engine handles a vocabulary that does not divide evenly."""
    return lambda subject: passes(f"{subject.vocabulary:,} tokens; {handling}")


def activation_dtype(*, marlin: Collection[int], option: str) -> RequirementCheck:
    """Requires fp16 activations, the only dtype of kernels other than Marlin.

    Args:
        marlin: bits of symmetric layers that Marlin computes.
        option: next step for other dtypes.
    """

    def check(subject: GptqCheckpoint) -> Finding:
        dtype = subject.config.get("dtype") or subject.config.get("torch_dtype")
        uses_marlin = all(layer.sym and layer.bits in marlin for layer in subject.layers)
        if uses_marlin or dtype == "float16":
            return passes(str(dtype))
        return warns(f"the config says {dtype}, kernels without Marlin take float16 only", option)

    return check


def _fused_layer_difference(subject: GptqCheckpoint) -> str | None:
    """Describes the first fused layer with different settings in its parts or rule, if any."""
    for number in range(subject.blocks):
        block = llama.BLOCK_NAME.format(number)
        for fused, stage in llama.FUSED_LINEARS.items():
            names = [f"{block}.{name}" for name in llama.linears_with_input(stage)]
            settings = [_layer_settings(subject, name) for name in names]
            if settings[0] is not None:
                settings.append(_layer_settings(subject, f"{block}.{fused}"))
            if any(part != settings[0] for part in settings):
                return f"{block}: {fused} and its parts have different settings"
    return None


def _layer_settings(subject: GptqCheckpoint, name: str) -> Any:
    if name in subject.plain_linears:
        return None
    settings = dynamic_settings(subject.quantization, name)
    return settings and {key: settings.get(key) for key in ("bits", "group_size", "sym")}


def _describe_layer(layer: GptqLayer, scope: str = "") -> str:
    name = {"": layer.name, "all": "all layers", "first": layer.name}[scope]
    return f"{name}: {layer.bits} bits, {'symmetric' if layer.sym else 'asymmetric'}"


def _list(numbers: Collection[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))
