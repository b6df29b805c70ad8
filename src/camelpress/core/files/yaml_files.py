"""Reads YAML safely and strictly: duplicate keys and keys other than strings are errors.

Plain values follow YAML 1.2 in surprising cases of 1.1: `3e-2`, `.5` and `1E5` are numbers, while a
date or `1:30` is a string. Size, depth and the number of values are bounded; each use of an alias
counts as a copy.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from camelpress.core.errors import RecipeProblem
from camelpress.core.files.file_recognizer import recognize_file
from camelpress.core.files.regular_files import read_regular
from camelpress.core.input_limits import MAX_YAML_BYTES, MAX_YAML_DEPTH, MAX_YAML_NODES

YAML_ERRORS = (  # errors of PyYAML, some raised by tags, long numbers or deep nesting
    yaml.YAMLError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
TAG = "tag:yaml.org,2002:"
TAGS = (None, *(TAG + kind for kind in ("null", "bool", "int", "float", "str", "seq", "map")))
BOOLS = "yes Yes YES no No NO true True TRUE false False FALSE on On ON off Off OFF"
DIGITS = "-+0123456789"
SCALARS = (  # type of a scalar other than a string, its pattern, its first characters
    ("null", r"~|null|Null|NULL|", ("~", "n", "N", "")),
    ("bool", BOOLS.replace(" ", "|"), "yYnNtTfFoO"),
    ("int", r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)", DIGITS),
    ("float", r"[-+]?(\.[0-9]+|[0-9][0-9_]*\.[0-9_]*)([eE][-+]?[0-9]{1,3})?", f"{DIGITS}."),
    ("float", r"[-+]?[0-9]+[eE][-+]?[0-9]{1,3}", DIGITS),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
)


class _Loader(yaml.SafeLoader):
    """A safe loader with bounds, for strings, numbers, booleans, lists and mappings."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    yaml_constructors = {tag: yaml.SafeLoader.yaml_constructors[tag] for tag in TAGS}

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._values = 0  # values so far, each use of an alias counted in full
        self._anchor_values: dict[str | None, int] = {}  # anchor to the number of values behind it
        self._open_anchors: set[str | None] = set()  # anchors of unfinished values

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Composes one value within the bounds."""
        event = self.peek_event()
        values_before = self._values
        if isinstance(event, yaml.AliasEvent):
            self._values += self._anchor_values.get(event.anchor, 0)
        self._values += 1
        self._depth += 1
        anchor = event.anchor
        if anchor in self._open_anchors:
            raise _limit_error(event, "a value that contains itself")
        if self._values > MAX_YAML_NODES:
            raise _limit_error(
                event, f"more than {MAX_YAML_NODES:,} values, copies by alias included"
            )
        if self._depth > MAX_YAML_DEPTH:
            raise _limit_error(event, f"more than {MAX_YAML_DEPTH} levels")
        self._open_anchors |= {anchor} - {None}
        node = super().compose_node(parent, index)
        self._open_anchors.discard(anchor)
        self._depth -= 1
        self._anchor_values.setdefault(anchor, self._values - values_before)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Builds a mapping without duplicate keys."""
        if not isinstance(node, yaml.MappingNode):
            return super().construct_mapping(node, deep)
        keys = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            fault = "is not a name" if not isinstance(key, str) else ""
            if fault or key in keys:
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"the key {key!r} {fault or 'appears twice'}",
                    key_node.start_mark,
                )
            keys.add(key)
        return super().construct_mapping(node, deep)


for _kind, _pattern, _first in SCALARS:
    _Loader.add_implicit_resolver(TAG + _kind, re.compile(f"(?:{_pattern})\\Z"), list(_first))


def _limit_error(event: Any, excess: str) -> yaml.YAMLError:
    return yaml.composer.ComposerError(None, None, f"it has {excess}", event.start_mark)


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a mapping from a YAML file.

    Raises:
        RecipeProblem: The file is missing, too large, not YAML, or not a mapping.
    """
    try:
        text = read_regular(path, MAX_YAML_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise RecipeProblem(
            f"{path} cannot be read ({error.strerror})", next_step="give a YAML file"
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeProblem(f"{path} is not UTF-8 text", next_step="give a YAML file") from error
    recognition = recognize_file(path)
    if recognition is not None:
        raise RecipeProblem(recognition.message, next_step=recognition.next_step)
    return parse_yaml(text, source=str(path))


def parse_yaml(text: str, *, source: str) -> dict[str, Any]:
    """Parses a mapping from a YAML text.

    Args:
        text: YAML text.
        source: Name of the text, for messages.
    Raises:
        RecipeProblem: The text is too long, not YAML, or not a mapping.
    """
    if len(text) > MAX_YAML_BYTES:
        raise RecipeProblem(
            f"{source} is longer than {MAX_YAML_BYTES:,} characters", next_step="shorten it"
        )
    try:
        content = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except YAML_ERRORS as error:
        raise RecipeProblem(
            f"{source} is not valid YAML ({' '.join(str(error).split()) or type(error).__name__})",
            next_step="correct it",
        ) from error
    if not isinstance(content, dict):
        raise RecipeProblem(f"{source} is not a mapping", next_step="give `name: value` lines")
    return content
