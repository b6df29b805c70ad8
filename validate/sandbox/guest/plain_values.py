"""Encodes plain Python values as typed JSON, without any behaviour of the originals.

JSON's own types stay unchanged: None, bool, int, float, str, list. Every other value becomes an
object with one key, its kind. Other iterables arrive as iterators over their items, all remaining
objects as opaque values. A class with a custom `__eq__`, or a list with a false
length, therefore arrives as a plain list of its items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any

CONTAINER_TYPES: tuple[tuple[Any, str], ...] = (
    (list, ""),
    (tuple, "tuple"),
    (frozenset, "frozenset"),
    (Set, "set"),
)


class OpaqueValue:
    """A value of an unsupported type; it equals only itself."""


def encode_value(value: Any) -> Any:
    """Encodes a value for `json.dumps`.

    Args:
        value: a value of any type; an iterable must be finite.
    Raises:
        RecursionError: The value contains itself or is nested too deeply.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    for kind, name in CONTAINER_TYPES:
        if isinstance(value, kind):
            content = [encode_value(item) for item in value]
            return {name: content} if name else content
    if isinstance(value, Mapping):
        return {"dict": [[encode_value(key), encode_value(item)] for key, item in value.items()]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, Iterable):
        return {"iterator": [encode_value(item) for item in value]}
    return {"stranger": type(value).__name__}


def decode_value(tree: Any) -> Any:
    """Decodes the result of `encode_value` after `json.loads`.

    Raises:
        ValueError, TypeError, KeyError, AttributeError, RecursionError: The input is no output of
            `encode_value`.
    """
    if isinstance(tree, list):
        return [decode_value(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    return DECODERS[kind](content)


DECODERS: dict[str, Callable[[Any], Any]] = {
    "tuple": lambda content: tuple(decode_value(content)),
    "frozenset": lambda content: frozenset(decode_value(content)),
    "set": lambda content: set(decode_value(content)),
    "dict": lambda content: dict(decode_value(content)),
    "bytes": bytes.fromhex,
    "complex": lambda content: complex(*content),
    "iterator": lambda content: iter(decode_value(content)),
    "stranger": lambda content: OpaqueValue(),
}
