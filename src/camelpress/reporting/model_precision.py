"""Names the precision of a model from its facts, for every text about a reference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

DTYPE_PRECISION = {"bfloat16": "16-bit", "float16": "16-bit", "float32": "32-bit"}
CODE_REPORTS = (
    "quantize-report.json",
    "export-report.json",
)  # reports of stages with codes


def model_precision(model: Any) -> str:
    """Returns "16-bit", "32-bit", "4-bit" or "dequantized" from a summary, "" if unknown."""
    facts = model if isinstance(model, Mapping) else {}
    if isinstance(facts.get("bits"), int):
        return f"{facts['bits']}-bit"
    if facts.get("dequantized") is True:
        return "dequantized"
    return DTYPE_PRECISION.get(str(facts.get("dtype")), "")


def is_quantized(model: Any) -> bool:
    """Returns True if a model's weights are packed codes or were dequantized from codes."""
    facts = model if isinstance(model, Mapping) else {}
    return isinstance(facts.get("bits"), int) or facts.get("dequantized") is True


def with_precision(model: Any, noun: str) -> str:
    """Returns the noun after the precision of a model, such as "16-bit reference"."""
    return f"{model_precision(model)} {noun}".lstrip()


def quantized_reference_caveat(facts: Mapping[str, Any]) -> str:
    """Returns the caveat about figures against a quantized reference, else ""."""
    reference = facts.get("reference")
    if not is_quantized(reference):
        return ""
    return (
        f"The reference is itself quantized ({model_precision(reference)}): "
        "these figures do not say what quantization cost."
    )


def dequantized_by(folder: Path) -> str | None:
    """Returns the name of the report that shows plain weights were dequantized, or None."""
    return next((name for name in CODE_REPORTS if (folder / name).is_file()), None)
