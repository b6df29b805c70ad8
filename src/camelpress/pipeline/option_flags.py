"""Writes settings as command-line options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_origin

from camelpress.core.settings import Settings, SettingsSection

BOOLEAN_FLAGS: Mapping[str, str] = {"sym": "--sym/--asym"}
FieldPath = tuple[str, ...]


def settings_arguments(
    settings: Settings, *, without: Sequence[str] = (), above: FieldPath = ()
) -> tuple[list[str], tuple[str, ...]]:
    """Returns settings as command-line words, and dotted names of the fields without an option.

    Fields at their default are left out.

    Args:
        settings: settings of a stage, or a section of them.
        without: names of fields to leave out.
        above: path of the section within the settings of the stage.
    """
    options: list[str] = []
    others: list[str] = []
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if name in without or value == field.default:
            continue
        flag = _flag((*above, name))
        if isinstance(value, SettingsSection):
            section_options, section_others = settings_arguments(value, above=(*above, name))
            options += section_options
            others += section_others
        elif _is_section(field.annotation) or isinstance(value, Settings | dict):
            others.append(".".join((*above, field.alias or name)))
        elif isinstance(value, bool):
            on, _, off = BOOLEAN_FLAGS.get(name, f"{flag}/--no-{flag[2:]}").partition("/")
            options.append(on if value else off)
        else:
            for item in value if isinstance(value, tuple) else [value]:
                options += [flag, _text(item)]
    return options, tuple(others)


def _text(value: Any) -> str:
    """Formats a value for a command line; item settings become `first=second=...`."""
    if isinstance(value, Settings):
        return "=".join(str(getattr(value, name)) for name in type(value).model_fields)
    return str(value)


def _flag(field_path: FieldPath) -> str:
    return "--" + "-".join(field_path).replace("_", "-")


def _is_section(annotation: Any) -> bool:
    if get_origin(annotation) is dict:
        return True
    return isinstance(annotation, type) and issubclass(annotation, Settings)
