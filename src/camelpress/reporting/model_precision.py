"""Names the precision of a model from its facts, for every text about a reference."""

from __future__ import annotations

from pathlib import Path

from camelpress.reporting.facts.validation_facts import ModelFacts

DTYPE_PRECISION = {"bfloat16": "16-bit", "float16": "16-bit", "float32": "32-bit"}
CODE_REPORTS = (
    "quantize-report.json",
    "export-report.json",
)  # reports of stages with codes


def model_precision(model: ModelFacts | None) -> str:
    """Returns "16-bit", "32-bit", "4-bit" or "dequantized", or "" if unknown."""
    if model is None:
        return ""
    if model.bits is not None:
        return f"{model.bits}-bit"
    return "dequantized" if model.dequantized else DTYPE_PRECISION.get(model.dtype, "")


def is_quantized(model: ModelFacts | None) -> bool:
    """Returns True if a model's weights are packed codes or were dequantized from codes."""
    return model is not None and (model.bits is not None or bool(model.dequantized))


def with_precision(model: ModelFacts | None, noun: str) -> str:
    """Returns the noun after the precision of a model, such as "16-bit reference"."""
    return f"{model_precision(model)} {noun}".lstrip()


def quantized_reference_caveat(reference: ModelFacts | None) -> str:
    """Returns the caveat about figures against a quantized reference, else ""."""
    if not is_quantized(reference):
        return ""
    return (
        f"The reference is itself quantized ({model_precision(reference)}): "
        "these figures do not say what quantization cost."
    )


def dequantized_by(folder: Path) -> str | None:
    """Returns the name of the report that shows plain weights were dequantized, or None."""
    return next((name for name in CODE_REPORTS if (folder / name).is_file()), None)
