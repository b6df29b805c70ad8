"""The strict base of everything a recipe or an option can set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from camelpress.core.errors import RecipeProblem

Kind = TypeVar("Kind", bound="Settings")


class Settings(BaseModel):
    """Frozen, no unknown keys, no coercion: `"no"` is not False and `"4"` is not 4."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @classmethod
    def parse(cls: type[Kind], values: Mapping[str, Any], *, source: str) -> Kind:
        """Read settings from plain YAML or option values.

        The values take the way of JSON, where a strict model accepts a string for a path and a
        list for a tuple.

        Raises:
            RecipeProblem: lists every fault with its dotted path.
        """
        try:
            return cls.model_validate_json(json.dumps(values, default=str))
        except ValidationError as error:
            raise RecipeProblem(
                f"{source}: {faults(error)}", next_step="correct these entries"
            ) from error
        except (ValueError, RecursionError) as error:  # YAML's aliases can make a value hold itself
            raise RecipeProblem(f"{source}: {error}", next_step="correct these entries") from error


def faults(error: ValidationError) -> str:
    """All faults of a validation in one line, each with its dotted path."""
    return ", ".join(
        f"{'.'.join(str(part) for part in fault['loc']) or 'file'}: {fault['msg']}"
        for fault in error.errors()
    )
