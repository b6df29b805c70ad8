"""Requirements on the config: keys, bits, groups, order, format, exceptions, head.

Each function makes a check for a table; what differs between engines is its arguments.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from camelpress.compat.gptq_checkpoint import Layer, Subject
from camelpress.compat.requirement import Check, Found, failed, noted, passed
from camelpress.core import llama
from camelpress.core.errors import CheckpointProblem
from camelpress.core.files.json_files import read_json
from camelpress.core.packing.dynamic_config import settings_of
from camelpress.core.packing.packed_checks import AGAIN as WHOLE

COPY = "quantize_config.json"
AGAIN = "quantize again with"
MARLIN_BITS = (4, 8)
MARLIN_GROUPS = (-1, 32, 64, 128)


def keys(*needed: str, wanted: tuple[str, ...] = ()) -> Check:
    """Keys of quantization_config: those that must be there, and those that cost speed."""

    def check(subject: Subject) -> Found:
        missing = [key for key in needed if key not in subject.quantization]
        if missing:
            return failed(
                f"quantization_config lacks {', '.join(missing)}",
                "write what the weights were quantized with into config.json",
            )
        lost = [key for key in wanted if key not in subject.quantization]
        if lost:
            return noted(
                f"quantization_config lacks {', '.join(lost)}, which is taken for false: no Marlin",
                "write it into config.json",
            )
        return passed(f"{', '.join(needed + wanted) or 'none needed'}")

    return check


def copies() -> Check:
    """quantize_config.json, which some loaders read instead, agrees with config.json."""

    def check(subject: Subject) -> Found:
        path = subject.checkpoint.folder / COPY
        if not path.is_file():
            return noted(
                f"there is no {COPY}, which older loaders read",
                "write quantization_config of config.json into it",
            )
        try:
            same = read_json(path) == dict(subject.quantization)
        except CheckpointProblem as problem:
            return failed(problem.what, problem.next_step)
        if not same:
            return failed(
                f"{COPY} differs from quantization_config in config.json, and loaders read either",
                "copy the right one over the other",
            )
        return passed(f"{COPY} says the same")

    return check


def complete() -> Check:
    """Every linear layer has all of its tensors; some engines leave what is missing as it was."""

    def check(subject: Subject) -> Found:
        if not subject.layers:
            return failed("there is no packed layer", "give the quantized checkpoint")
        if subject.lacking:
            missing = f"{len(subject.lacking)} tensors are missing, first {subject.lacking[0]!r}"
            return failed(missing, WHOLE)
        if subject.misfits:
            return failed(
                f"{subject.misfits[0]!r} does not fit the other parts of its layer", WHOLE
            )
        return passed(f"{len(subject.layers)} packed layers, none lacks a part")

    return check


def bits(*, sym: Collection[int], asym: Collection[int], fast: Collection[int] = ()) -> Check:
    """Bits that the engine has kernels for.

    Args:
        sym: of symmetric layers.
        asym: of asymmetric ones.
        fast: of symmetric ones that Marlin computes, if the others run slower.
    """

    def check(subject: Subject) -> Found:
        for layer in subject.layers:
            if layer.bits not in (sym if layer.sym else asym):
                known = [f"{one} sym" for one in sorted(sym)] + [
                    f"{one} asym" for one in sorted(asym)
                ]
                return failed(
                    f"{_told(layer)}; the engine knows {', '.join(known)}",
                    f"{AGAIN} --bits 4 --sym" if 4 in sym else f"{AGAIN} --bits {min(sym)}",
                )
        slow = [each for each in subject.layers if fast and not (each.sym and each.bits in fast)]
        if slow:
            return noted(
                f"{_told(slow[0])}: computed without Marlin, slower",
                f"{AGAIN} --bits 4 --sym for speed",
            )
        return passed(_told(subject.layers[0], "all" if subject.uniform else "first"))

    return check


def groups(allowed: Collection[int], *, slower: bool = False) -> Check:
    """Group sizes that Marlin has; others are refused, or computed by other kernels."""

    def check(subject: Subject) -> Found:
        for layer in subject.layers:
            if layer.group_size not in allowed:
                told = f"{layer.name} has groups of {layer.group_size}; Marlin has {_list(allowed)}"
                if slower:
                    return noted(f"{told}, other kernels compute it", f"{AGAIN} --group-size 128")
                return failed(told, f"{AGAIN} --group-size 128")
        return passed(_list({layer.group_size for layer in subject.layers}))

    return check


def power_of_two_groups() -> Check:
    """The group size is found by doubling until all columns are covered."""

    def check(subject: Subject) -> Found:
        for layer in subject.layers:
            count = -(-layer.inputs // layer.columns)
            size = 1
            while size * count < layer.inputs:
                size *= 2
            if count > 1 and size != layer.columns:
                return failed(
                    f"{layer.name} has {count} groups of {layer.columns}, taken for ones of {size}",
                    f"{AGAIN} --group-size 128",
                )
        return passed(_list({layer.group_size for layer in subject.layers}))

    return check


def order(*, reads: bool, asked: bool = True) -> Check:
    """Columns of a group stand together, or the engine knows that they do not.

    Args:
        reads: whether the engine looks at g_idx at all.
        asked: whether only where `desc_act` says so.
    """

    def check(subject: Subject) -> Found:
        says = subject.quantization.get("desc_act") is True
        out = next((each.name for each in subject.values if each.unordered), None)
        if out is None:
            if says and asked:
                return noted(
                    "desc_act is true although all columns are in order: slower, for nothing",
                    "write desc_act: false into config.json and quantize_config.json",
                )
            return passed("g_idx is in order, desc_act false" if not says else "g_idx is in order")
        if not reads or (asked and not says):
            why = "does not read g_idx" if not reads else "reads g_idx only if desc_act is true"
            return failed(
                f"{out} has its columns out of order, and the engine {why}: other weights",
                f"{AGAIN} camelpress, which keeps groups together",
            )
        return noted(f"{out} has its columns out of order: slower", f"{AGAIN} desc_act false")

    return check


def formats(*, reads_v2: bool, reads_zeros: bool, marlin: Collection[int] = ()) -> Check:
    """How zero points are stored: one short (gptq, v1) or as they are (gptq_v2).

    Args:
        reads_v2: whether the engine tells the two apart.
        reads_zeros: whether it looks at zero points at all; Marlin does not, for symmetric layers.
        marlin: bits of symmetric layers whose zero points it does not look at.
    """

    def check(subject: Subject) -> Found:
        form = subject.quantization.get("checkpoint_format", "gptq")
        if form not in ("gptq", "gptq_v2"):
            return failed(f"checkpoint_format is {form!r}", f"{AGAIN} camelpress, which writes v1")
        if form == "gptq" or reads_v2:
            return passed(form)
        blind = not reads_zeros or all(each.sym and each.bits in marlin for each in subject.layers)
        if blind:
            return passed(f"{form}; zero points of symmetric layers are not read")
        return failed(
            f"{form} is read as gptq, so every zero point is off by one",
            f"{AGAIN} camelpress, which writes v1",
        )

    return check


def exceptions(*, reads: bool, scans: bool = False, sizes_from_tensors: bool = False) -> Check:
    """Layers with settings of their own (`dynamic`).

    Args:
        reads: whether the engine reads them, and holds q/k/v, and gate and up, as one layer each.
        scans: whether it looks into the files for layers that are plain.
        sizes_from_tensors: whether it needs no settings, but takes sizes from the tensors.
    """

    def check(subject: Subject) -> Found:
        if subject.uniform:
            return passed("none: all layers are alike")
        if sizes_from_tensors:
            return passed("not read; sizes are taken from the tensors, plain layers are plain")
        if not reads:
            named = subject.plain[0] if subject.plain else "dynamic"
            return failed(
                f"{named}: the engine reads no settings of single layers",
                f"{AGAIN} one setting for all, without quantize.modules",
            )
        untold = [each for each in subject.plain if settings_of(subject.quantization, each)]
        if untold and not scans:
            return failed(
                f"{untold[0]} is plain, and nothing in the config says so",
                "write a rule that begins with -: into dynamic",
            )
        apart = _apart(subject)
        if apart:
            return failed(
                f"{apart}, which the engine holds as one layer",
                "give all of them the same settings, and name the fused layer in dynamic",
            )
        return passed(f"{len(subject.quantization.get('dynamic') or {})} rules")

    return check


def head(*, packs: bool) -> Check:
    """The output projection, packed or plain, as `lm_head` in the config says."""

    def check(subject: Subject) -> Found:
        owned = llama.owns_head(subject.checkpoint.tensors)
        if not owned and not llama.is_tied(subject.config):
            return failed("lm_head is missing, and would be filled with noise", WHOLE)
        if owned and llama.is_tied(subject.checkpoint.stated) > llama.is_tied(subject.config):
            return failed(
                f"lm_head is no copy of the embedding, and {llama.TIED} is true: "
                "the embedding may be used",
                f"write {llama.TIED}: false into config.json",
            )
        says = bool(subject.quantization.get("lm_head", False))
        if says != subject.packed_head:
            told = "packed" if subject.packed_head else "plain"
            return failed(
                f"lm_head is {told}, and quantization_config says lm_head: {str(says).lower()}",
                "correct lm_head in config.json",
            )
        if says and not packs:
            return failed("lm_head is packed, and is read plain", f"{AGAIN} a plain lm_head")
        return passed("packed" if says else "plain")

    return check


def vocabulary(told: str) -> Check:
    """What becomes of a vocabulary that does not divide evenly."""
    return lambda subject: passed(f"{subject.vocabulary:,} tokens; {told}")


def activations(*, marlin: Collection[int], option: str) -> Check:
    """Kernels other than Marlin take fp16 activations only."""

    def check(subject: Subject) -> Found:
        dtype = subject.config.get("dtype") or subject.config.get("torch_dtype")
        if all(each.sym and each.bits in marlin for each in subject.layers) or dtype == "float16":
            return passed(str(dtype))
        return noted(f"the config says {dtype}, kernels without Marlin take float16 only", option)

    return check


def _apart(subject: Subject) -> str | None:
    """Layers that are held as one and have different settings, or are not named as one."""
    for number in range(subject.blocks):
        block = llama.BLOCK.format(number)
        for fused, stage in llama.FUSED.items():
            names = [f"{block}.{name}" for name in llama.linears_fed_by(stage)]
            settings = [_own(subject, name) for name in names]
            if settings[0] is not None:
                settings.append(_own(subject, f"{block}.{fused}"))
            if any(each != settings[0] for each in settings):
                return f"{block}: {fused} and its parts have different settings"
    return None


def _own(subject: Subject, name: str) -> Any:
    if name in subject.plain:
        return None
    found = settings_of(subject.quantization, name)
    return found and {key: found.get(key) for key in ("bits", "group_size", "sym")}


def _told(layer: Layer, whose: str = "") -> str:
    name = {"": layer.name, "all": "all layers", "first": layer.name}[whose]
    return f"{name}: {layer.bits} bits, {'symmetric' if layer.sym else 'asymmetric'}"


def _list(numbers: Collection[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))
