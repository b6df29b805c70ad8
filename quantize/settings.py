"""Settings of the quantize stage in a recipe."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator
from pydantic_core import PydanticCustomError

from camelpress.core.settings import Settings

CalibrationMask = Literal["all", "assistant"]
NATIVE = "native"
# fmt: off
# setting: the only value other engines support, and the reason
BACKEND_LIMITS: dict[str, tuple[Any, str]] = {
    "method":           ("gptq", "supports GPTQ only"),
    "modules":          ({},     "supports one setting for all layers"),
    "pad_ffn":          (0,      "does not pad"),
    "max_fallbacks":    (0,      "does not limit layers rounded to nearest"),
    "correction":       (0,      "does not correct towards the 16-bit outputs"),
    "calibration_mask": ("all",  "counts every token in its Hessians"),
}
# fmt: on
SOURCE_WITH_WEIGHT = re.compile(
    r"(?P<source>.+)=(?P<weight>[+-]?\d+(\.\d*)?(e[+-]?\d+)?)", re.DOTALL
)


class CalibrationSource(Settings):
    """Calibration text, with its share of the tokens."""

    source: Path = Field(
        description="file, or hf:org/name[@revision]:file for a data set on the hub"
    )
    weight: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="weight of its share of the tokens"
    )


def _parse_source(value: Any) -> Any:
    """Parses `PATH` or `PATH=WEIGHT`; text after the last `=` is a weight if it is a number.

    A file name that ends like a weight needs an explicit weight, or the form `source:`.
    """
    if not isinstance(value, str):
        return value
    match = SOURCE_WITH_WEIGHT.fullmatch(value)
    if match is None:
        return {"source": value}
    return {"source": match["source"], "weight": float(match["weight"])}


SourceEntry = Annotated[
    CalibrationSource,
    BeforeValidator(_parse_source, json_schema_input_type=str | CalibrationSource),
]


class ModuleSettings(Settings):
    """Settings of some layers; unset fields fall back to the settings of all layers."""

    bits: Literal[2, 3, 4, 8] | None = Field(default=None, description="bits per weight")
    group_size: Literal[-1, 16, 32, 64, 128] | None = Field(
        default=None, description="neighbouring columns with one scale; -1: the whole row"
    )
    sym: bool | None = Field(default=None, description="zero point in the middle of the codes")
    keep: bool | None = Field(default=None, description="keep these layers in 16 bits")


class QuantizeSettings(Settings):
    """Settings to quantize a 16-bit checkpoint to a GPTQ checkpoint."""

    engine: Literal["native", "gptqmodel", "optimum", "auto-gptq"] = Field(
        default="native",
        description="quantizer: camelpress (native), or another tool on the same calibration ids",
    )
    engine_python: Path | None = Field(
        default=None,
        description="Python interpreter of the other engine; unset: the one of camelpress",
    )
    method: Literal["gptq", "rtn"] = Field(
        default="gptq", description="rtn: round to nearest, a baseline without calibration"
    )
    bits: Literal[2, 3, 4, 8] = Field(default=4, description="bits per weight")
    group_size: Literal[-1, 16, 32, 64, 128] = Field(
        default=128, description="neighbouring columns with one scale; -1: the whole row"
    )
    sym: bool = Field(
        default=True, description="zero point in the middle of the codes; false: one for each group"
    )
    modules: dict[str, ModuleSettings] = Field(
        default={},
        description="settings of single layers by patterns of their full names, such as "
        '"*.down_proj" or "model.layers.0.*"; later patterns win',
    )
    pad_ffn: int = Field(
        default=0,
        ge=0,
        description="pad intermediate_size with zeros to a multiple of this, to split whole groups "
        "over several GPUs: 1024 for 8 GPUs and groups of 128; 0: no padding",
    )
    damp_percent: float = Field(
        default=0.05,
        gt=0,
        le=1,
        description="damping: initial fraction of mean(diag H) added to diag H",
    )
    max_fallbacks: int = Field(
        default=0,
        ge=0,
        description="maximum of failed layers: rounded to nearest for lack of a Cholesky factor, "
        "or with a loss beyond the limit",
    )
    correction: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="strength of each layer's correction for the errors of earlier layers, 0 to 1",
    )
    calibration: tuple[SourceEntry, ...] = Field(
        default=(),
        description="conversations (JSON, JSON lines) or plain texts, as PATH or PATH=WEIGHT, or "
        "hf:org/name:file for a data set on the hub",
    )
    calibration_mask: CalibrationMask = Field(
        default="all",
        description="counted tokens: all, or those of the assistant, as in training",
    )
    samples: int = Field(
        default=128, gt=0, description="calibration tokens, in units of sequence_length"
    )
    sequence_length: int = Field(default=2048, gt=1, description="maximum tokens of a sequence")
    seed: int = Field(default=42, ge=0, description="seed of the calibration sequences")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="dtype of the forward pass; auto: 16 bits where they are faster"
    )
    device: str = Field(default="auto", description="auto, cpu or cuda:N")

    @field_validator("engine_python", "sym", *BACKEND_LIMITS)
    @classmethod
    def _require_engine_support(cls, value: Any, info: Any) -> Any:
        """Rejects explicit settings the engine does not support."""
        engine = info.data.get("engine", NATIVE)
        reason = None
        if info.field_name == "engine_python":
            reason = "needs none" if engine == NATIVE and value is not None else None
        elif info.field_name == "sym":
            fault = "packs a zero point of 0 over its neighbours"
            reason = fault if engine == "auto-gptq" and not value else None
        elif engine != NATIVE:
            supported, limit = BACKEND_LIMITS[str(info.field_name)]
            reason = limit if value != supported else None
        if reason:
            raise PydanticCustomError(
                "engine", "engine {engine} {reason}", {"engine": engine, "reason": reason}
            )
        return value

    def for_layer(self, layer: str) -> QuantizeSettings | None:
        """Returns the settings of a layer by its full name, none for one kept in 16 bits."""
        overrides: dict[str, Any] = {}
        for pattern, module in self.modules.items():
            if fnmatchcase(layer, pattern):
                overrides |= module.model_dump(exclude_none=True)
        return None if overrides.pop("keep", False) else self.model_copy(update=overrides)
