"""Detects packed weights from the names, dtypes and shapes of tensors, without the config."""

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
AWQ_CODES = (4, 8)  # codes per 32-bit word, for 8 and 4 bits
# fmt: off
FOREIGN_FORMATS: Mapping[str, str] = {  # part of a tensor name with a final dot: its format
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
    """A format of packed weights, and the name of a tensor as evidence."""

    format: str
    tensor: str


def has_packed_weights(tensors: Mapping[str, TensorInfo]) -> bool:
    """Returns True if any tensor belongs to packed weights of any format."""
    return (
        any(name.endswith(CODE_SUFFIXES) for name in tensors)
        or find_foreign_format(tensors) is not None
    )


def has_plain_linears(tensors: Mapping[str, TensorInfo]) -> bool:
    """Returns True if decoder blocks have linear layers and none of them is packed."""
    return any(name.endswith(LINEAR_SUFFIXES) for name in tensors) and not has_packed_weights(
        tensors
    )


def find_foreign_format(tensors: Mapping[str, TensorInfo]) -> FormatEvidence | None:
    """Returns evidence of an unsupported format or None; names take precedence over dtypes."""
    dtype_evidence = None
    for name, info in tensors.items():
        if name.endswith(".weight"):
            dtype_evidence = dtype_evidence or _format_by_dtype(name, info)
            continue
        format_name = _format_by_name(name) or _format_by_shape(name, info, tensors)
        if format_name:
            return FormatEvidence(format_name, name)
    return dtype_evidence


def _format_by_name(name: str) -> str | None:
    return next((label for part, label in FOREIGN_FORMATS.items() if part in f"{name}."), None)


def _format_by_dtype(name: str, info: TensorInfo) -> FormatEvidence | None:
    is_narrow = info.dtype.itemsize == 1 and name.endswith(LINEAR_SUFFIXES)
    return FormatEvidence("8-bit numbers", name) if is_narrow else None


def _format_by_shape(name: str, info: TensorInfo, tensors: Mapping[str, TensorInfo]) -> str | None:
    """Returns "AWQ" for words with codes of several outputs; a GPTQ word belongs to one output."""
    if not name.endswith(".qweight"):
        return None
    linear = name.removesuffix(".qweight")
    parts = (tensors.get(f"{linear}.{part}") for part in ("qzeros", "scales"))
    words, zeros, outputs = (
        part.shape[1] if part and len(part.shape) == 2 else 0 for part in (info, *parts)
    )
    return "AWQ" if zeros == words and outputs in (words * codes for codes in AWQ_CODES) else None
