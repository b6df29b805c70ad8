"""Requirements on the config: keys, bits, groups, order, format, exceptions, head.

Each function makes a check for a table; what differs between engines is its arguments.
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
from camelpress.core.packing.packed_checks import REPLACEMENT_ADVICE as WHOLE

CONFIG_COPY = "quantize_config.json"
QUANTIZE_AGAIN = "quantize again with"
MARLIN_BITS = (4, 8)
MARLIN_GROUPS = (-1, 32, 64, 128)


def config_keys(*needed: str, wanted: tuple[str, ...] = ()) -> RequirementCheck:
    """Keys of quantization_config: those that must be there, and those that cost speed."""

    def check(subject: GptqCheckpoint) -> Finding:
        missing = [key for key in needed if key not in subject.quantization]
        if missing:
            return fails(
                f"quantization_config lacks {', '.join(missing)}",
                "write what the weights were quantized with into config.json",
            )
        lost = [key for key in wanted if key not in subject.quantization]
        if lost:
            return warns(
                f"quantization_config lacks {', '.join(lost)}, which is taken for false: no Marlin",
                "write it into config.json",
            )
        return passes(f"{', '.join(needed + wanted) or 'none needed'}")

    return check


def config_copy() -> RequirementCheck:
    """quantize_config.json, which some loaders read instead, agrees with config.json."""

    def check(subject: GptqCheckpoint) -> Finding:
        path = subject.checkpoint.folder / CONFIG_COPY
        if not path.is_file():
            return warns(
                f"there is no {CONFIG_COPY}, which older loaders read",
                "write quantization_config of config.json into it",
            )
        try:
            same = read_json(path) == dict(subject.quantization)
        except CheckpointProblem as problem:
            return fails(problem.message, problem.next_step)
        if not same:
            return fails(
                f"{CONFIG_COPY} differs from quantization_config in config.json, and "
                "loaders read either",
                "copy the right one over the other",
            )
        return passes(f"{CONFIG_COPY} says the same")

    return check


def layer_tensors() -> RequirementCheck:
    """Every linear layer has all of its tensors; some engines leave what is missing as it was."""

    def check(subject: GptqCheckpoint) -> Finding:
        if not subject.layers:
            return fails("there is no packed layer", "give the quantized checkpoint")
        if subject.missing_tensors:
            missing = f"{len(subject.missing_tensors)} tensors are missing, first {subject.missing_tensors[0]!r}"
            return fails(missing, WHOLE)
        if subject.mismatched_tensors:
            return fails(
                f"{subject.mismatched_tensors[0]!r} does not fit the other parts of its layer",
                WHOLE,
            )
        return passes(f"{len(subject.layers)} packed layers, none lacks a part")

    return check


def bit_widths(
    *, sym: Collection[int], asym: Collection[int], fast: Collection[int] = ()
) -> RequirementCheck:
    """Bits that the engine has kernels for.

    Args:
        sym: of symmetric layers.
        asym: of asymmetric ones.
        fast: of symmetric ones that Marlin computes, if the others run slower.
    """

    def check(subject: GptqCheckpoint) -> Finding:
        for layer in subject.layers:
            if layer.bits not in (sym if layer.sym else asym):
                known = [f"{one} sym" for one in sorted(sym)] + [
                    f"{one} asym" for one in sorted(asym)
                ]
                return fails(
                    f"{_describe_layer(layer)}; the engine knows {', '.join(known)}",
                    f"{QUANTIZE_AGAIN} --bits 4 --sym"
                    if 4 in sym
                    else f"{QUANTIZE_AGAIN} --bits {min(sym)}",
                )
        slow = [each for each in subject.layers if fast and not (each.sym and each.bits in fast)]
        if slow:
            return warns(
                f"{_describe_layer(slow[0])}: computed without Marlin, slower",
                f"{QUANTIZE_AGAIN} --bits 4 --sym for speed",
            )
        return passes(_describe_layer(subject.layers[0], "all" if subject.is_uniform else "first"))

    return check


def group_sizes(allowed: Collection[int], *, slower: bool = False) -> RequirementCheck:
    """Group sizes that Marlin has; others are refused, or computed by other kernels."""

    def check(subject: GptqCheckpoint) -> Finding:
        for layer in subject.layers:
            if layer.group_size not in allowed:
                told = f"{layer.name} has groups of {layer.group_size}; Marlin has {_list(allowed)}"
                if slower:
                    return warns(
                        f"{told}, other kernels compute it", f"{QUANTIZE_AGAIN} --group-size 128"
                    )
                return fails(told, f"{QUANTIZE_AGAIN} --group-size 128")
        return passes(_list({layer.group_size for layer in subject.layers}))

    return check


def power_of_two_groups() -> RequirementCheck:
    """The group size is found by doubling until all columns are covered."""

    def check(subject: GptqCheckpoint) -> Finding:
        for layer in subject.layers:
            count = -(-layer.inputs // layer.columns)
            size = 1
            while size * count < layer.inputs:
                size *= 2
            if count > 1 and size != layer.columns:
                return fails(
                    f"{layer.name} has {count} groups of {layer.columns}, taken for ones of {size}",
                    f"{QUANTIZE_AGAIN} --group-size 128",
                )
        return passes(_list({layer.group_size for layer in subject.layers}))

    return check


def column_order(*, reads: bool, asked: bool = True) -> RequirementCheck:
    """Columns of a group stand together, or the engine knows that they do not.

    Args:
        reads: whether the engine looks at g_idx at all.
        asked: whether only where `desc_act` says so.
    """

    def check(subject: GptqCheckpoint) -> Finding:
        says = subject.quantization.get("desc_act") is True
        out = next((each.name for each in subject.values if each.has_act_order), None)
        if out is None:
            if says and asked:
                return warns(
                    "desc_act is true although all columns are in order: slower, for nothing",
                    "write desc_act: false into config.json and quantize_config.json",
                )
            return passes("g_idx is in order, desc_act false" if not says else "g_idx is in order")
        if not reads or (asked and not says):
            why = "does not read g_idx" if not reads else "reads g_idx only if desc_act is true"
            return fails(
                f"{out} has its columns out of order, and the engine {why}: other weights",
                f"{QUANTIZE_AGAIN} camelpress, which keeps groups together",
            )
        return warns(
            f"{out} has its columns out of order: slower", f"{QUANTIZE_AGAIN} desc_act false"
        )

    return check


def checkpoint_format(
    *, reads_v2: bool, reads_zeros: bool, marlin: Collection[int] = ()
) -> RequirementCheck:
    """How zero points are stored: one short (gptq, v1) or as they are (gptq_v2).

    Args:
        reads_v2: whether the engine tells the two apart.
        reads_zeros: whether it looks at zero points at all; Marlin does not, for symmetric layers.
        marlin: bits of symmetric layers whose zero points it does not look at.
    """

    def check(subject: GptqCheckpoint) -> Finding:
        form = subject.quantization.get("checkpoint_format", "gptq")
        if form not in ("gptq", "gptq_v2"):
            return fails(
                f"checkpoint_format is {form!r}", f"{QUANTIZE_AGAIN} camelpress, which writes v1"
            )
        if form == "gptq" or reads_v2:
            return passes(form)
        blind = not reads_zeros or all(each.sym and each.bits in marlin for each in subject.layers)
        if blind:
            return passes(f"{form}; zero points of symmetric layers are not read")
        return fails(
            f"{form} is read as gptq, so every zero point is off by one",
            f"{QUANTIZE_AGAIN} camelpress, which writes v1",
        )

    return check


def layer_overrides(
    *, reads: bool, scans: bool = False, sizes_from_tensors: bool = False
) -> RequirementCheck:
    """Layers with settings of their own (`dynamic`).

    Args:
        reads: whether the engine reads them, and holds q/k/v, and gate and up, as one layer each.
        scans: whether it looks into the files for layers that are plain.
        sizes_from_tensors: whether it needs no settings, but takes sizes from the tensors.
    """

    def check(subject: GptqCheckpoint) -> Finding:
        if subject.is_uniform:
            return passes("none: all layers are alike")
        if sizes_from_tensors:
            return passes("not read; sizes are taken from the tensors, plain layers are plain")
        if not reads:
            named = subject.plain_linears[0] if subject.plain_linears else "dynamic"
            return fails(
                f"{named}: the engine reads no settings of single layers",
                f"{QUANTIZE_AGAIN} one setting for all, without quantize.modules",
            )
        untold = [
            each for each in subject.plain_linears if dynamic_settings(subject.quantization, each)
        ]
        if untold and not scans:
            return fails(
                f"{untold[0]} is plain, and nothing in the config says so",
                "write a rule that begins with -: into dynamic",
            )
        apart = _split_fused_layer(subject)
        if apart:
            return fails(
                f"{apart}, which the engine holds as one layer",
                "give all of them the same settings, and name the fused layer in dynamic",
            )
        return passes(f"{len(subject.quantization.get('dynamic') or {})} rules")

    return check


def output_head(*, packs: bool) -> RequirementCheck:
    """The output projection, packed or plain, as `lm_head` in the config says."""

    def check(subject: GptqCheckpoint) -> Finding:
        owned = llama.has_head(subject.checkpoint.tensors)
        if not owned and not llama.is_tied(subject.config):
            return fails("lm_head is missing, and would be filled with noise", WHOLE)
        if owned and llama.is_tied(subject.checkpoint.file_config) > llama.is_tied(subject.config):
            return fails(
                f"lm_head is no copy of the embedding, and {llama.TIE_EMBEDDINGS_KEY} is true: "
                "the embedding may be used",
                f"write {llama.TIE_EMBEDDINGS_KEY}: false into config.json",
            )
        says = bool(subject.quantization.get("lm_head", False))
        if says != subject.packed_head:
            told = "packed" if subject.packed_head else "plain"
            return fails(
                f"lm_head is {told}, and quantization_config says lm_head: {str(says).lower()}",
                "correct lm_head in config.json",
            )
        if says and not packs:
            return fails(
                "lm_head is packed, and is read plain", f"{QUANTIZE_AGAIN} a plain lm_head"
            )
        return passes("packed" if says else "plain")

    return check


def vocabulary_padding(told: str) -> RequirementCheck:
    """What becomes of a vocabulary that does not divide evenly."""
    return lambda subject: passes(f"{subject.vocabulary:,} tokens; {told}")


def activation_dtype(*, marlin: Collection[int], option: str) -> RequirementCheck:
    """Kernels other than Marlin take fp16 activations only."""

    def check(subject: GptqCheckpoint) -> Finding:
        dtype = subject.config.get("dtype") or subject.config.get("torch_dtype")
        if all(each.sym and each.bits in marlin for each in subject.layers) or dtype == "float16":
            return passes(str(dtype))
        return warns(f"the config says {dtype}, kernels without Marlin take float16 only", option)

    return check


def _split_fused_layer(subject: GptqCheckpoint) -> str | None:
    """Layers that are held as one and have different settings, or are not named as one."""
    for number in range(subject.blocks):
        block = llama.BLOCK_NAME.format(number)
        for fused, stage in llama.FUSED_LINEARS.items():
            names = [f"{block}.{name}" for name in llama.linears_with_input(stage)]
            settings = [_layer_settings(subject, name) for name in names]
            if settings[0] is not None:
                settings.append(_layer_settings(subject, f"{block}.{fused}"))
            if any(each != settings[0] for each in settings):
                return f"{block}: {fused} and its parts have different settings"
    return None


def _layer_settings(subject: GptqCheckpoint, name: str) -> Any:
    if name in subject.plain_linears:
        return None
    found = dynamic_settings(subject.quantization, name)
    return found and {key: found.get(key) for key in ("bits", "group_size", "sym")}


def _describe_layer(layer: GptqLayer, whose: str = "") -> str:
    name = {"": layer.name, "all": "all layers", "first": layer.name}[whose]
    return f"{name}: {layer.bits} bits, {'symmetric' if layer.sym else 'asymmetric'}"


def _list(numbers: Collection[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))
