"""Builds command-line options from settings, with default and help text of the field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from inspect import Parameter
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from rich.markup import escape

from camelpress.core.settings import Settings, SettingsSection
from camelpress.pipeline.option_flags import BOOLEAN_FLAGS, FieldPath, _flag, _is_section

SETTINGS_PANEL = "Settings"
SECTION_SEPARATOR = "__"  # between section and field in a parameter name


def option_parameters(settings: type[Settings]) -> list[Parameter]:
    """Returns one keyword parameter per field, None by default; mappings have no parameter.

    A field without a default becomes a required option. A `SettingsSection` has one option per
    field; other nested settings have none.
    """
    return [*_parameters(settings, ())]


def _parameters(settings: type[Settings], above: FieldPath) -> Iterator[Parameter]:
    for name, field in settings.model_fields.items():
        field_path = (*above, name)
        if _has_options(field.annotation):
            yield from _parameters(field.annotation, field_path)  # type: ignore[arg-type]
        elif not _is_section(field.annotation):
            yield Parameter(
                SECTION_SEPARATOR.join(field_path),
                Parameter.KEYWORD_ONLY,
                default=Parameter.empty if field.is_required() else None,
                annotation=_annotation(field_path, field),
            )


def explicit_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of the command line as nested settings, without unset options."""
    values: dict[str, Any] = {}
    for name, value in options.items():
        if value is not None and value != []:
            *sections, field = name.split(SECTION_SEPARATOR)
            section = values
            for key in sections:
                section = section.setdefault(key, {})
            section[field] = value
    return values


def _annotation(field_path: FieldPath, field: FieldInfo) -> Any:
    kind, name = _option_type(field.annotation), field_path[-1]
    flag = _flag(field_path)
    if kind is bool:
        flag = BOOLEAN_FLAGS.get(name, f"{flag}/--no-{flag[2:]}")
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    default = "" if field.is_required() else f" [default: {_default(name, field)}]"
    help_text = (field.description or "") + default
    option = typer.Option(
        flag,
        help=escape(help_text),
        metavar="|".join(map(str, choices)) if choices and kind is not bool else None,
        show_default=False,
        rich_help_panel=field_path[0].capitalize() if field_path[1:] else SETTINGS_PANEL,
    )
    return Annotated[kind if field.is_required() else kind | None, option]


def _default(name: str, field: FieldInfo) -> str:
    if isinstance(field.default, bool) and name in BOOLEAN_FLAGS:
        on, off = BOOLEAN_FLAGS[name].split("/")
        return on.strip("-") if field.default else off.strip("-")
    if field.default in (None, ()):
        return "none"
    if isinstance(field.default, tuple):
        return ", ".join(map(str, field.default))
    return str(field.default).lower() if isinstance(field.default, bool) else str(field.default)


def _option_type(annotation: Any) -> Any:
    """Returns the option type: `list[Path]` for `tuple[Path, ...]`, str for a choice."""
    if get_origin(annotation) is Literal:
        return type(get_args(annotation)[0])
    if get_origin(annotation) is tuple:
        return list[_item_type(annotation)]  # type: ignore[misc]
    if get_origin(annotation) in (Union, UnionType):
        return next(kind for kind in get_args(annotation) if kind is not NoneType)
    return annotation


def _item_type(annotation: Any) -> Any:
    """Returns the type of a tuple item; nested settings are parsed from one string."""
    item = get_args(annotation)[0]
    kind = get_args(item)[0] if get_origin(item) is Annotated else item
    return str if _is_section(kind) else kind


def _has_options(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, SettingsSection)
