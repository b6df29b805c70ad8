"""Reads values that a card or table quotes from reports and configs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def value_at(source: Any, path: str) -> Any:
    """Returns the value at a dotted path in nested plain data, or None."""
    for part in path.split("."):
        source = source.get(part) if isinstance(source, Mapping) else None
    return source
