"""What a recipe may say about quantizing."""

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
# setting: what other engines can do, and why no more
BACKEND_LIMITS: dict[str, tuple[Any, str]] = {
    "method":           ("gptq", "does GPTQ only"),
    "modules":          ({},     "is given one setting for all layers"),
    "pad_ffn":          (0,      "pads nothing"),
    "max_fallbacks":    (0,      "cannot be told how many layers may be rounded to nearest"),
    "correction":       (0,      "does not aim at the outputs of the 16-bit model"),
    "calibration_mask": ("all",  "takes every token into its Hessians"),
}
# fmt: on
SOURCE_WITH_WEIGHT = re.compile(
    r"(?P<source>.+)=(?P<weight>[+-]?\d+(\.\d*)?(e[+-]?\d+)?)", re.DOTALL
)


class CalibrationSource(Settings):
    """A text to calibrate on, and its share of the tokens beside the other texts."""

    source: Path = Field(
        description="a file, or hf:org/name[@revision]:file of a data set on the hub"
    )
    weight: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="share of the tokens, as a ratio"
    )


def _parse_source(value: Any) -> Any:
    """`PATH` or `PATH=WEIGHT`: what follows the last `=` is a weight if it is a number.

    A file whose own name ends so is given with a weight, or as `source:`.
    """
    if not isinstance(value, str):
        return value
    found = SOURCE_WITH_WEIGHT.fullmatch(value)
    if found is None:
        return {"source": value}
    return {"source": found["source"], "weight": float(found["weight"])}


SourceEntry = Annotated[
    CalibrationSource,
    BeforeValidator(_parse_source, json_schema_input_type=str | CalibrationSource),
]


class ModuleSettings(Settings):
    """What some layers have for themselves; what is not given is as for all."""

    bits: Literal[2, 3, 4, 8] | None = Field(default=None, description="per weight")
    group_size: Literal[-1, 16, 32, 64, 128] | None = Field(
        default=None, description="neighbouring columns that share a scale; -1: the whole row"
    )
    sym: bool | None = Field(default=None, description="zero point in the middle")
    keep: bool | None = Field(default=None, description="leave them in 16 bits")


class QuantizeSettings(Settings):
    """16-bit checkpoint to 4-bit GPTQ checkpoint."""

    engine: Literal["native", "gptqmodel", "optimum", "auto-gptq"] = Field(
        default="native",
        description="who quantizes: camelpress, or another tool that is calibrated on the same ids",
    )
    engine_python: Path | None = Field(
        default=None,
        description="interpreter that has the other engine; none: the one that runs camelpress",
    )
    method: Literal["gptq", "rtn"] = Field(
        default="gptq", description="rtn: round to nearest, the baseline; needs no calibration"
    )
    bits: Literal[2, 3, 4, 8] = Field(default=4, description="per weight")
    group_size: Literal[-1, 16, 32, 64, 128] = Field(
        default=128, description="neighbouring columns that share a scale; -1: the whole row"
    )
    sym: bool = Field(default=True, description="zero point in the middle; false: one per group")
    modules: dict[str, ModuleSettings] = Field(
        default={},
        description="layers with settings of their own, by patterns of their full names, such as "
        '"*.down_proj" or "model.layers.0.*"; later patterns win',
    )
    pad_ffn: int = Field(
        default=0,
        ge=0,
        description="raise intermediate_size with zeros to a multiple of this, so that groups can "
        "be dealt out to several GPUs: 1024 for 8 of them and groups of 128; 0: as it is",
    )
    damp_percent: float = Field(
        default=0.05, gt=0, le=1, description="fraction of mean(diag H) added to diag H at first"
    )
    max_fallbacks: int = Field(
        default=0,
        ge=0,
        description="layers that may fail: rounded to nearest for want of a Hessian, or with an "
        "error beyond the limit",
    )
    correction: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="how far each layer makes up for what the layers before it changed",
    )
    calibration: tuple[SourceEntry, ...] = Field(
        default=(),
        description="conversations (JSON, JSON lines) or plain texts, as PATH or PATH=WEIGHT; "
        "hf:org/name:file for a data set on the hub",
    )
    calibration_mask: CalibrationMask = Field(
        default="all",
        description="tokens that count: all, or what the assistant says, as in training",
    )
    samples: int = Field(
        default=128, gt=0, description="times sequence_length: tokens to calibrate"
    )
    sequence_length: int = Field(default=2048, gt=1, description="tokens; longer ones are cut")
    seed: int = Field(default=42, ge=0, description="of the draw of calibration sequences")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="of the forward pass; auto: 16 bits where they are faster"
    )
    device: str = Field(default="auto", description="auto, cpu or cuda:N")

    @field_validator("engine_python", "sym", *BACKEND_LIMITS)
    @classmethod
    def _require_engine_support(cls, value: Any, info: Any) -> Any:
        """What is given, and only that, has to be something that the engine does."""
        engine = info.data.get("engine", NATIVE)
        why = None
        if info.field_name == "engine_python":
            why = "needs none" if engine == NATIVE and value is not None else None
        elif info.field_name == "sym":
            packs = "packs zero points of 0 over those beside them"
            why = packs if engine == "auto-gptq" and not value else None
        elif engine != NATIVE:
            able, reason = BACKEND_LIMITS[str(info.field_name)]
            why = reason if value != able else None
        if why:
            raise PydanticCustomError(
                "engine", "engine {engine} {why}", {"engine": engine, "why": why}
            )
        return value

    def for_layer(self, layer: str) -> QuantizeSettings | None:
        """What holds for one layer, by its full name; None if it stays in 16 bits."""
        own: dict[str, Any] = {}
        for pattern, module in self.modules.items():
            if fnmatchcase(layer, pattern):
                own |= module.model_dump(exclude_none=True)
        return None if own.pop("keep", False) else self.model_copy(update=own)
