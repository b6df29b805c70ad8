"""Strict base class of all settings in recipes and command-line options."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from difflib import get_close_matches
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from camelpress.core.errors import RecipeProblem

Kind = TypeVar("Kind", bound="Settings")
MAX_FAULTS = 50  # faults listed in one message


class Settings(BaseModel):
    """Immutable settings without unknown keys or coercion: `"no"` is not False, `"4"` is not 4."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @classmethod
    def parse(cls: type[Kind], values: Mapping[str, Any], *, source: str) -> Kind:
        """Reads settings from plain YAML or option values.

        The values pass through JSON, since a strict model then accepts a string for a path and a
        list for a tuple.

        Args:
            values: Setting values by name.
            source: Name of the recipe or option, for messages.
        Raises:
            RecipeProblem: Some values are invalid; the message lists each fault with its dotted
                path.
        """
        try:
            return cls.model_validate_json(json.dumps(values, default=str))
        except ValidationError as error:
            raise RecipeProblem(
                f"{source}: {describe_validation_error(error, cls)}",
                next_step="correct these entries",
            ) from error
        except (
            ValueError,
            RecursionError,
        ) as error:  # a YAML alias can make a value contain itself
            raise RecipeProblem(f"{source}: {error}", next_step="correct these entries") from error


class SettingsSection(Settings):
    """Nested settings with an option for each field: `url` in `judge` is --judge-url."""


def describe_validation_error(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """Lists the faults of a validation in one line, each with its dotted path.

    Args:
        error: Validation error of pydantic.
        model: Validated model class, to suggest a field for a misspelt name; None suggests none.
    """
    rows = error.errors(include_url=False, include_context=False, include_input=False)
    lines = [
        f"{'.'.join(str(part) for part in row['loc']) or 'file'}: {_in_words_of_json(row['msg'])}"
        + (_suggest_name(model, row["loc"]) if row["type"] == "extra_forbidden" else "")
        for row in rows[:MAX_FAULTS]
    ]
    return ", ".join(lines) + (f", and {len(rows) - MAX_FAULTS:,} more" * (len(rows) > MAX_FAULTS))


def _in_words_of_json(message: str) -> str:
    """Returns a message of pydantic with the names of JSON types in place of Python's."""
    message = re.sub(r"a valid dictionary( or instance of \w+)?", "an object", message)
    return re.sub(r"a valid (list|tuple)", "a valid array", message)


def _suggest_name(model: type[BaseModel] | None, path: tuple[int | str, ...]) -> str:
    """Suggests the field closest in spelling to the last part of a path; "" if none is close."""
    kinds: list[Any] = [model]
    for part in path[:-1]:
        kinds = [inner for kind in kinds for inner in _child_types(kind, part)]
    names = [
        field.alias or name
        for kind in kinds
        if _is_model_class(kind)
        for name, field in kind.model_fields.items()
    ]
    matches = get_close_matches(str(path[-1]), names, n=1)
    return f" (did you mean {matches[0]}?)" if matches else ""


def _child_types(kind: Any, part: int | str) -> list[Any]:
    """Lists the possible types of a field of a model or an item of a container."""
    if _is_model_class(kind):
        fields = {field.alias or name: field for name, field in kind.model_fields.items()}
        return _union_members(fields[str(part)].annotation) if str(part) in fields else []
    return [choice for item in get_args(kind)[-1:] for choice in _union_members(item)]


def _union_members(annotation: Any) -> list[Any]:
    is_union = get_origin(annotation) in (Union, UnionType)
    return [*get_args(annotation)] if is_union else [annotation]


def _is_model_class(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
