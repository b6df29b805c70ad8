"""Base class of all facts in reports: a typed view of one JSON object.

The object itself is kept and written again, so that a report that is read and written comes back
byte for byte, with its order of keys and with keys that this version does not know.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    PrivateAttr,
    Strict,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticKnownError

FactsT = TypeVar("FactsT", bound="FactsModel")
Reading = Literal["strict", "lenient"]  # context of a validation that reads a file
MAX_NUMBER = 1e15  # magnitude beyond which a figure of a report is damaged


def _require_bounds(value: float, info: Any, minimum: float = -MAX_NUMBER) -> float:
    """Refuses a number of a file that is not finite or out of bounds; a stage may write any."""
    if info.context is None:
        return value
    if not math.isfinite(value):
        raise PydanticKnownError("finite_number")
    if value > MAX_NUMBER:
        raise PydanticKnownError("less_than_equal", {"le": MAX_NUMBER})
    if value < minimum:
        raise PydanticKnownError("greater_than_equal", {"ge": minimum})
    return value


def _require_natural_bounds(value: float, info: Any) -> float:
    return _require_bounds(value, info, minimum=0.0)


def _require_ordered(ends: tuple[float, float], info: Any) -> tuple[float, float]:
    if info.context is not None and ends[0] > ends[1]:
        raise ValueError("an interval ends before it begins")
    return ends


Number = Annotated[
    float,
    AfterValidator(_require_bounds),
    WithJsonSchema({"maximum": MAX_NUMBER, "minimum": -MAX_NUMBER, "type": "number"}),
]
NonNegativeNumber = Annotated[
    float,
    AfterValidator(_require_natural_bounds),
    WithJsonSchema({"maximum": MAX_NUMBER, "minimum": 0, "type": "number"}),
]
OptionalNumber = Number | None  # null if the value is not finite
Interval = Annotated[tuple[Number, Number], Strict(False), AfterValidator(_require_ordered)] | None


class FactsModel(BaseModel):
    """Typed view of the facts of a stage, or of a part of them.

    A stage builds its facts from a dictionary; numbers may be NaN or infinite and become null in
    JSON. A reader of a file passes a context to `model_validate`: `strict` refuses what does not
    fit, `lenient` reads a missing or damaged field as None, whatever its type.
    """

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    _record: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def record(self) -> dict[str, Any]:
        """The JSON object behind the facts, as it is written."""
        return self._record

    @classmethod
    def build(cls: type[FactsT], record: Mapping[str, Any]) -> FactsT:
        """Builds facts from plain data, without bounds on numbers.

        Raises:
            ValidationError: a field is missing or has another type.
        """
        return cls.model_validate(record)

    @classmethod
    def read(cls: type[FactsT], record: Mapping[str, Any], reading: Reading = "lenient") -> FactsT:
        """Reads facts from the JSON object of a file.

        Raises:
            ValidationError: `strict`, and the object does not fit.
        """
        return cls.model_validate(record, context=reading)

    def updated(self: FactsT, **changes: Any) -> FactsT:
        """Returns the facts with some keys replaced or added."""
        return type(self).read({**self._record, **changes})

    @model_validator(mode="wrap")
    @classmethod
    def _keep_record(cls, value: Any, handler: Any, info: Any) -> Any:
        if isinstance(value, cls):
            return value
        if info.context == "lenient":
            value = value if isinstance(value, Mapping) else {}
            facts = handler({**cls._missing(), **value})
        else:
            facts = handler(value)
        facts._record = dict(value)
        return facts

    @classmethod
    def _missing(cls) -> dict[str, None]:
        """Maps the required keys to None."""
        return {
            field.alias or name: None
            for name, field in cls.model_fields.items()
            if field.is_required()
        }

    @field_validator("*", mode="wrap")
    @classmethod
    def _read_field(cls, value: Any, handler: Any, info: Any) -> Any:
        if info.context != "lenient":
            return handler(value)
        try:
            return handler(value)
        except ValidationError:
            return None

    @model_serializer(mode="plain")
    def _write_record(self) -> dict[str, Any]:
        return self._record

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FactsModel) and self._record == other._record

    __hash__ = None  # type: ignore[assignment]
