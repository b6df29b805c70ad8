"""Typed facts of the report of quantize."""

from __future__ import annotations

from pydantic import Field

from camelpress.reporting.facts_model import FactsModel, OptionalNumber


class CalibrationFileFacts(FactsModel):
    """One calibration file."""

    name: str
    sha256: str
    weight: OptionalNumber = Field(default=None, description="requested share of the tokens")
    rows: int = Field(default=0, description="rows of the file; 1 for prose")
    omissions: dict[str, dict[str, int]] = Field(
        default={}, description="omitted parts of the file: unit, then reason, then count"
    )
    unanswered: int = Field(default=0, description="conversations cut before an answer begins")


class CalibrationFacts(FactsModel):
    """Calibration sequences."""

    format: str
    sequence_length: int = Field(description="tokens")
    samples: int = Field(description="sequences")
    tokens: int
    counted_tokens: int | None = Field(default=None, description="tokens in the Hessians")
    truncated: int | None = Field(default=None, description="conversations cut at the end")
    files: list[CalibrationFileFacts]


class EngineFacts(FactsModel):
    """Engine that quantized the weights."""

    name: str
    versions: dict[str, str] = {}


class WidthChange(FactsModel):
    """Width of the feed-forward layers before and after padding."""

    width: int = Field(alias="from")
    padded: int = Field(alias="to")


class LayerFacts(FactsModel):
    """One quantized layer."""

    name: str
    relative_error: OptionalNumber = Field(
        default=None, description="relative error of the layer's outputs on the calibration"
    )
    loss: OptionalNumber = None
    lost: bool = Field(default=False, description="true if the error is beyond the limit")
    rescue: str = Field(default="", description="rescue that the layer needed")


class QuantizeFacts(FactsModel):
    """Facts of a quantization."""

    method: str
    calibration: CalibrationFacts | None
    engine: EngineFacts | None = None
    device: str | None = None
    threads: int | None = Field(default=None, description="CPU threads")
    cpu: str | None = Field(default=None, description="instruction set")
    dtype: str
    padded: WidthChange | None
    rescues: int | None = Field(description="layers that needed a rescue")
    fallbacks: int | None = Field(description="layers rounded to nearest, as GPTQ failed")
    lost: int | None = Field(default=None, description="layers with an error beyond the limit")
    layers: list[LayerFacts]

    @property
    def calibration_files(self) -> list[CalibrationFileFacts]:
        """Calibration files; empty if the report names none."""
        return (self.calibration.files if self.calibration else None) or []
