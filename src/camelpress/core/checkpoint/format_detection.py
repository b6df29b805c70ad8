"""Signs of packed weights in the names, types and shapes of tensors, whatever a config says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from camelpress.core import llama
from camelpress.core.checkpoint.shards import TensorInfo

CODE_SUFFIXES = (".qweight", ".weight_packed")  # codes of GPTQ and of compressed-tensors
READABLE_FORMATS = (
    "GPTQ (gptq or gptq_v2), auto-round (auto_gptq) or compressed-tensors (pack-quantized)"
)
LINEAR_SUFFIXES = tuple(f".{linear.name}.weight" for linear in llama.LINEARS)
AWQ_CODES = (4, 8)  # codes of one 32-bit word
# fmt: off
FOREIGN_FORMATS: Mapping[str, str] = {  # part of a tensor's name, with a dot after it: its format
    ".weight.quant_state.": "bitsandbytes in 4 bits",
    ".weight.absmax.":      "bitsandbytes in 4 bits",
    ".weight.quant_map.":   "bitsandbytes in 4 bits",
    ".SCB.":                "bitsandbytes in 8 bits",
    ".weight_scale_inv.":   "FP8 in blocks",
    ".W_q.":                "HQQ",
    ".weight._data.":       "quanto",
    ".weight_scales.":      "EETQ",
    ".codebooks.":          "AQLM",
}
# fmt: on


class FormatEvidence(NamedTuple):
    """A format of packed weights, and a tensor that shows it."""

    format: str
    tensor: str


def has_packed_weights(tensors: Mapping[str, TensorInfo]) -> bool:
    """Returns whether a tensor belongs to packed weights of any format."""
    return (
        any(name.endswith(CODE_SUFFIXES) for name in tensors)
        or find_foreign_format(tensors) is not None
    )


def has_plain_linears(tensors: Mapping[str, TensorInfo]) -> bool:
    """Returns whether there are linear layers of decoder blocks, and none of them is packed."""
    return any(name.endswith(LINEAR_SUFFIXES) for name in tensors) and not has_packed_weights(
        tensors
    )


def find_foreign_format(tensors: Mapping[str, TensorInfo]) -> FormatEvidence | None:
    """Returns a sign of a format that is not read here, or None; names tell more than types."""
    unknown = None
    for name, info in tensors.items():
        if name.endswith(".weight"):
            unknown = unknown or _format_by_dtype(name, info)
            continue
        kind = _format_by_name(name) or _format_by_shape(name, info, tensors)
        if kind:
            return FormatEvidence(kind, name)
    return unknown


def _format_by_name(name: str) -> str | None:
    return next((kind for part, kind in FOREIGN_FORMATS.items() if part in f"{name}."), None)


def _format_by_dtype(name: str, info: TensorInfo) -> FormatEvidence | None:
    narrow = info.dtype.itemsize == 1 and name.endswith(LINEAR_SUFFIXES)
    return FormatEvidence("8-bit numbers", name) if narrow else None


def _format_by_shape(name: str, info: TensorInfo, tensors: Mapping[str, TensorInfo]) -> str | None:
    """Returns AWQ for words of several outputs; a word of GPTQ belongs to one output."""
    if not name.endswith(".qweight"):
        return None
    linear = name.removesuffix(".qweight")
    parts = (tensors.get(f"{linear}.{part}") for part in ("qzeros", "scales"))
    words, zeros, outputs = (
        part.shape[1] if part and len(part.shape) == 2 else 0 for part in (info, *parts)
    )
    return "AWQ" if zeros == words and outputs in (words * codes for codes in AWQ_CODES) else None
