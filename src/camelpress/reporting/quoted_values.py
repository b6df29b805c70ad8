"""Reads values that a card or table quotes from reports and configs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from camelpress.reporting.number_format import format_quoted as format_quoted


def value_at(source: Any, path: str) -> Any:
    """Returns the value at a dotted path in nested plain data, or None."""
    for part in path.split("."):
        source = source.get(part) if isinstance(source, Mapping) else None
    return source


def text_facts(facts: Mapping[str, Any]) -> list[Any]:
    """Returns the facts of the texts of a validation, in the order of its report."""
    texts = facts.get("texts")
    return texts if isinstance(texts, list) else []
