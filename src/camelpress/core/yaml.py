"""YAML, read safely and strictly: a key that is no name or stands twice is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from camelpress.core.errors import RecipeProblem

FAULTS = (  # PyYAML lets some through as they are: of dates, tags, long numbers and deep nesting
    yaml.YAMLError,
    ValueError,
    KeyError,
    AttributeError,
    RecursionError,
)


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, and one that is no text (`on` is true)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping, every key once."""
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for key in keys:
            fault = "is not a name" if not isinstance(key, str) else ""
            fault = fault or ("stands there twice" if keys.count(key) > 1 else "")
            if fault:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} {fault}", node.start_mark
                )
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping from a YAML file.

    Raises:
        RecipeProblem: the file is missing, not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeProblem(
            f"{path} cannot be read ({type(error).__name__})", next_step="give a YAML file"
        ) from error
    return parse_yaml(text, source=str(path))


def parse_yaml(text: str, *, source: str) -> dict[str, Any]:
    """A mapping from YAML text.

    Raises:
        RecipeProblem: not YAML, or not a mapping.
    """
    try:
        content = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except FAULTS as error:
        raise RecipeProblem(
            f"{source} is not valid YAML ({' '.join(str(error).split())})",
            next_step="correct it",
        ) from error
    if not isinstance(content, dict):
        raise RecipeProblem(f"{source} is not a mapping", next_step="give `name: value` lines")
    return content
