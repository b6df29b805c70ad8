"""Plain Python values as JSON that names their types, and nothing that could act when it is read.

What JSON has itself stays as it is: None, bool, int, float, str, list. Everything else is an object
with one key, its kind. What is no plain value crosses as what it can be used for at most: something
that yields values, or something that equals nothing. So a class with an `__eq__` of its own, or a
list that is longer than it says, arrives as a mere list of what it holds.
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
    """A value of a type that is not carried; it equals nothing but itself."""


def encode_value(value: Any) -> Any:
    """What `json.dumps` can write of a value.

    Args:
        value: of any type; an iterable must end.
    Raises:
        RecursionError: it holds itself, or is too deep.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    for kind, name in CONTAINER_TYPES:
        if isinstance(value, kind):
            content = [encode_value(each) for each in value]
            return {name: content} if name else content
    if isinstance(value, Mapping):
        return {"dict": [[encode_value(key), encode_value(each)] for key, each in value.items()]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, Iterable):
        return {"iterator": [encode_value(each) for each in value]}
    return {"stranger": type(value).__name__}


def decode_value(tree: Any) -> Any:
    """The value that `encode` was given, from what `json.loads` read.

    Raises:
        ValueError, TypeError, KeyError, AttributeError, RecursionError: `encode` never wrote that.
    """
    if isinstance(tree, list):
        return [decode_value(each) for each in tree]
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
