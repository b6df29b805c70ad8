"""Reads a recipe from strict YAML: inputs, one section per stage, and the output folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from camelpress.convert.settings import RecoverSettings
from camelpress.core.errors import RecipeProblem
from camelpress.core.files.regular_files import is_path
from camelpress.core.files.yaml_files import parse_yaml, read_yaml
from camelpress.core.hub.model_location import is_hub_name
from camelpress.core.hub.repo_id import REPO_ID_PATTERN
from camelpress.core.settings import Settings
from camelpress.publish.settings import PublishSettings
from camelpress.quantize.settings import QuantizeSettings
from camelpress.validate.settings import ValidateSettings

MODEL_KEYS = (("base",), ("diff",))
PATH_KEYS = (
    *MODEL_KEYS,
    ("out",),
    ("recover", "verify"),
    ("quantize", "engine_python"),
    ("quantize", "calibration"),
    ("validate", "text"),
    ("validate", "data_dir"),
    ("validate", "answers"),
    ("validate", "judge", "local"),
    ("validate", "judge", "annotations"),
    ("publish", "gated_like"),
    ("publish", "sign_with"),
)


class Recipe(Settings):
    """All inputs and settings that decide the bytes of a release."""

    base: Path = Field(description="Raw model: a folder, or org/name[@revision] on the hub.")
    diff: Path = Field(
        description="Published weight diff: a folder, or org/name[@revision] on the hub."
    )
    out: Path = Field(description="Folder for the outputs of all stages and the lock file.")
    recover: RecoverSettings = Field(default=RecoverSettings())
    quantize: QuantizeSettings = Field(default=QuantizeSettings())
    validation: ValidateSettings = Field(default=ValidateSettings(), alias="validate")
    publish: PublishSettings = Field(default=PublishSettings())


def read_recipe(path: Path, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Recipe:
    """Reads a recipe file; its relative paths start at the folder of the file.

    A model named `org/name` is taken from the hub if no such folder exists.

    Args:
        path: YAML file.
        overrides: `section.key=value` texts with a YAML value, or a mapping of `section.key` to a
            value; their relative paths start at the current folder.
    Raises:
        RecipeProblem: lists all faults in one line, with dotted paths.
    """
    content = read_yaml(path)
    for keys in PATH_KEYS:
        _resolve_paths(content, keys, path.resolve().parent)
    for name, value in _override_values(overrides):
        _set_value(content, name, value)
    for keys in PATH_KEYS:
        _require_paths(_value(content, keys), ".".join(keys))
    return Recipe.parse(content, source=str(path))


def _resolve_paths(content: dict[str, Any], keys: tuple[str, ...], folder: Path) -> None:
    section: Any = content
    for key in keys[:-1]:
        section = section.get(key)
        if not isinstance(section, dict):
            return
    value = section.get(keys[-1])
    if keys in MODEL_KEYS and isinstance(value, str) and _on_hub(value, folder):
        section[keys[-1]] = f"hf:{value.removeprefix('hf:')}"
    elif isinstance(value, list):
        section[keys[-1]] = [_resolve_path(item, folder) for item in value]
    elif keys[-1] in section:
        section[keys[-1]] = _resolve_path(value, folder)


def _resolve_path(value: Any, folder: Path) -> Any:
    """Makes a path, or the `source` of a weighted text, relative to a folder."""
    if isinstance(value, str) and not is_hub_name(Path(value)):
        return str(folder / _expand_user(value))
    if isinstance(value, dict) and "source" in value:
        return value | {"source": _resolve_path(value["source"], folder)}
    return value


def _expand_user(value: str) -> Path:
    try:
        return Path(value).expanduser()
    except RuntimeError as error:
        raise RecipeProblem(
            f"the path {value!r} begins with an unknown user",
            next_step="write the folder in full",
        ) from error


def _value(content: dict[str, Any], keys: tuple[str, ...]) -> Any:
    value: Any = content
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _require_paths(value: Any, name: str) -> None:
    """Refuses strings that no file system accepts as a path."""
    for item in value if isinstance(value, list) else [value]:
        path = item.get("source") if isinstance(item, dict) else item
        if isinstance(path, str) and not is_path(path):
            raise RecipeProblem(
                f"{name} is {path!r}, which is not a valid path", next_step="correct it"
            )


def _on_hub(value: str, folder: Path) -> bool:
    return value.startswith("hf:") or bool(
        REPO_ID_PATTERN.fullmatch(value) and is_path(value) and not (folder / value).exists()
    )


def _override_values(overrides: Sequence[str] | Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Returns dotted names and their values as JSON has them: a path as its text."""
    if isinstance(overrides, Mapping):
        values: dict[str, Any] = json.loads(json.dumps(dict(overrides), default=str))
        return [*values.items()]
    return [_parse_override(override) for override in overrides]


def _parse_override(override: str) -> tuple[str, Any]:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise RecipeProblem(
            f"the override {override!r} has no name or no value",
            next_step="write it as quantize.group_size=64",
        )
    return name, parse_yaml(f"value: {text}", source=f"the override {override!r}")["value"]


def _set_value(content: dict[str, Any], name: str, value: Any) -> None:
    *sections, key = name.split(".")
    section = content
    for part in sections:
        inner = section.setdefault(part, {})
        if not isinstance(inner, dict):
            raise RecipeProblem(
                f"the override {name!r} goes through {part!r}, which is a value and not a section",
                next_step="see `camelpress schema` for the names",
            )
        section = inner
    section[key] = value
