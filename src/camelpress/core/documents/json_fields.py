"""Gives typed access to one JSON object, and lists its unread fields.

`null` and NaN count as no value.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

from camelpress.core.documents.omissions import Omission

EMPTY_VALUES: tuple[Any, ...] = ("", [], {})
JSON_KINDS: dict[type, str] = {
    type(None): "null",
    bool: "a truth value",
    int: "a number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
}
MAX_QUOTE = 40  # characters of a quoted word


def quote_word(word: str) -> str:
    """Returns a word from a file in quotes, shortened and safe to print."""
    return repr(word if len(word) <= MAX_QUOTE else f"{word[:MAX_QUOTE]}...")


def json_kind(value: Any) -> str:
    """Returns the JSON kind of a value in words."""
    return "null" if _is_null(value) else JSON_KINDS.get(type(value), "an object")


class JsonFields:
    """Typed access to a JSON object; a failed read raises `Omission` with the field's name.

    Args:
        values: fields of the object.
        container: name of the list or field around the object, for names of unread fields.
    """

    def __init__(self, values: Mapping[str, Any], container: str = "") -> None:
        self._object = values
        self._values = {key: value for key, value in values.items() if not _is_null(value)}
        self._container = container
        self._reads: set[str] = set()
        self._children: list[JsonFields] = []

    def __contains__(self, key: str) -> bool:
        return key in self._object

    def __iter__(self) -> Iterator[str]:
        return iter(self._object)

    def has_value(self, key: str) -> bool:
        """Returns True for a field with a value other than null."""
        return key in self._values

    def first_key(self, keys: Sequence[str]) -> str:
        """Returns the first key with a value, else the first existing key, else the first key."""
        for key in keys:
            if key in self._values:
                return key
        return next((key for key in keys if key in self._object), keys[0])

    def contains_text(self, key: str, mark: str) -> bool:
        """Returns True for a text field with the mark in it."""
        value = self._values.get(key)
        return isinstance(value, str) and mark in value

    def is_any_of(self, key: str, words: Container[str]) -> bool:
        """Returns True for a text field with one of the words, in any case."""
        value = self._values.get(key)
        return isinstance(value, str) and value.strip().casefold() in words

    def is_truthy(self, key: str) -> bool:
        """Returns True for a field that is not missing, null, false or empty."""
        self._reads.add(key)
        return bool(self._values.get(key))

    def value(self, key: str) -> Any:
        """Returns the value of a required field.

        Raises:
            Omission: the field is missing or null.
        """
        self._reads.add(key)
        if key not in self._values:
            raise Omission(f"{key} is {'null' if key in self._object else 'missing'}")
        return self._values[key]

    def text(self, key: str) -> str:
        """Returns the value of a required text field.

        Raises:
            Omission: the field is missing, null or no text.
        """
        value = self.value(key)
        if not isinstance(value, str):
            raise Omission(f"{key} is {json_kind(value)}, not text")
        return value

    def optional_text(self, key: str) -> str:
        """Returns a text; empty for a missing or null field."""
        return self.text(key) if self.has_value(key) else ""

    def texts(self, key: str) -> list[str]:
        """Returns a list of one or more texts; a single text counts as a list of one."""
        value = self.value(key)
        items = [value] if isinstance(value, str) else value
        if not (isinstance(items, list) and all(isinstance(item, str) for item in items)):
            raise Omission(f"{key} is not a list of texts")
        if not items:
            raise Omission(f"{key} is empty")
        return items

    def child(self, key: str) -> JsonFields:
        """Returns the object in a field."""
        value = self.value(key)
        if not isinstance(value, Mapping):
            raise Omission(f"{key} is {json_kind(value)}, not an object")
        return self._child(value, key)

    def children(self, key: str) -> list[JsonFields]:
        """Returns the objects in a list field."""
        value = self.value(key)
        if not isinstance(value, list):
            raise Omission(f"{key} is {json_kind(value)}, not a list")
        if not all(isinstance(item, Mapping) for item in value):
            raise Omission(
                f"{key} holds something else than objects",
                next_step=f"write each item of {key} as an object with named fields",
            )
        return [self._child(item, f"{key}[]") for item in value]

    def unread_fields(self) -> Iterator[str]:
        """Yields the names of all unread fields with a value.

        An object in a list without any read field is omitted as a whole, and not named here.
        """
        stack = [self]
        while stack:
            fields = stack.pop()
            for key, value in fields._values.items():
                if key not in fields._reads and value not in EMPTY_VALUES:
                    yield f"{fields._container}{field_name(key)}"
            stack += reversed([child for child in fields._children if child._reads])

    def _child(self, values: Mapping[str, Any], name: str) -> JsonFields:
        child = JsonFields(values, f"{name}.")
        self._children.append(child)
        return child


def field_name(key: str) -> str:
    """Returns the name of a field, in quotes unless it is an identifier."""
    return (
        key if key.replace("-", "_").isidentifier() and len(key) <= MAX_QUOTE else quote_word(key)
    )


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)
