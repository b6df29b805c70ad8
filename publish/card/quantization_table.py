"""Defines the quantization table of the card: labels, and the reader of each value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from camelpress.publish.card.card_markdown import SafeMarkdown
from camelpress.reporting.facts.quantize_facts import CalibrationFacts, EngineFacts, QuantizeFacts
from camelpress.reporting.facts.validation_facts import ModelFacts, OverlapFacts
from camelpress.reporting.number_format import NOT_RECORDED, format_quoted
from camelpress.reporting.report_classes import QuantizeReport, ValidationReport


@dataclass(frozen=True)
class QuantizationSources:
    """Sources of the quantization table; without a report, its facts are empty.

    Args:
        config: quantization config of the model.
        quantize, validation: stage reports, if present.
        calibration_license: licence of the calibration, from the settings of publish.
    """

    config: Mapping[str, Any]
    quantize: QuantizeReport | None
    validation: ValidationReport | None
    calibration_license: str | None

    @property
    def quantize_facts(self) -> QuantizeFacts:
        """Facts of the quantization."""
        return self.quantize.facts if self.quantize else QuantizeFacts.read({})

    @property
    def calibration(self) -> CalibrationFacts:
        """Facts of the calibration."""
        return self.quantize_facts.calibration or CalibrationFacts.read({})

    @property
    def engine(self) -> EngineFacts:
        """Facts of the engine that quantized the weights."""
        return self.quantize_facts.engine or EngineFacts.read({})

    @property
    def quantize_settings(self) -> Mapping[str, Any]:
        """Settings of quantize."""
        return self.quantize.settings if self.quantize else {}

    @property
    def candidate(self) -> ModelFacts:
        """Facts of the validated model."""
        candidate = self.validation.facts.candidate if self.validation else None
        return candidate or ModelFacts.read({})

    @property
    def overlap(self) -> OverlapFacts:
        """Overlap of the scored texts with the calibration."""
        overlap = self.validation.facts.overlap if self.validation else None
        return overlap or OverlapFacts.read({})

    @property
    def validate_settings(self) -> Mapping[str, Any]:
        """Settings of validate."""
        return self.validation.settings if self.validation else {}


class QuantizationLine(NamedTuple):
    """Line of the quantization table: label and reader of its value."""

    label: str
    read: Callable[[QuantizationSources], Any]


QUANTIZATION_ROWS = (
    QuantizationLine("`bits`", lambda release: release.config.get("bits")),
    QuantizationLine("`group_size`", lambda release: release.config.get("group_size")),
    QuantizationLine("`sym`", lambda release: release.config.get("sym")),
    QuantizationLine("`desc_act`", lambda release: release.config.get("desc_act")),
    QuantizationLine(
        "`checkpoint_format`", lambda release: release.config.get("checkpoint_format")
    ),
    QuantizationLine(
        "`damp_percent` (a fraction)", lambda release: release.config.get("damp_percent")
    ),
    QuantizationLine("`engine` of camelpress", lambda release: release.engine.name),
    QuantizationLine("method", lambda release: release.quantize_facts.method),
    QuantizationLine("`correction`", lambda release: release.quantize_settings.get("correction")),
    QuantizationLine("seed", lambda release: release.quantize_settings.get("seed")),
    QuantizationLine("calibration format", lambda release: release.calibration.format),
    QuantizationLine("calibration samples", lambda release: release.calibration.samples),
    QuantizationLine("calibration tokens", lambda release: release.calibration.tokens),
    QuantizationLine(
        "calibration tokens that count", lambda release: release.calibration.counted_tokens
    ),
    QuantizationLine(
        "`calibration_mask`", lambda release: release.quantize_settings.get("calibration_mask")
    ),
    QuantizationLine(
        "calibration sequence length", lambda release: release.calibration.sequence_length
    ),
    QuantizationLine("licence of the calibration", lambda release: release.calibration_license),
    QuantizationLine("layers that needed a rescue", lambda release: release.quantize_facts.rescues),
    QuantizationLine("layers beyond the error limit", lambda release: release.quantize_facts.lost),
    QuantizationLine("overlap with the texts checked", lambda release: release.overlap.checked),
    QuantizationLine(
        "overlap allowed", lambda release: release.validate_settings.get("allow_overlap")
    ),
    QuantizationLine("bits per weight", lambda release: release.candidate.bits_per_weight),
    QuantizationLine("parameters", lambda release: release.candidate.parameters),
)


def quantization_rows(sources: QuantizationSources) -> list[tuple[str, str]]:
    """Returns labels and values of the quantization table."""
    rows: list[tuple[str, str]] = [
        (SafeMarkdown(row.label), format_quoted(row.read(sources))) for row in QUANTIZATION_ROWS
    ]
    files = sources.quantize_facts.calibration_files
    rows += [
        ("calibration text", f"{format_quoted(file.name)}, sha256 {format_quoted(file.sha256)}")
        for file in files
    ]
    return rows if files else [*rows, ("calibration text", NOT_RECORDED)]
