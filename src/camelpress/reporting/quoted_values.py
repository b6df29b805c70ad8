"""Formats values quoted from reports and configs; a missing value reads "not recorded"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NOT_RECORDED = "not recorded"


def value_at(source: Any, path: str) -> Any:
    """Returns the value at a dotted path in nested plain data, or None."""
    for part in path.split("."):
        source = source.get(part) if isinstance(source, Mapping) else None
    return source


def format_quoted(value: Any) -> str:
    """Formats a value with six digits, yes or no; None is "not recorded"."""
    if value is None:
        return NOT_RECORDED
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def format_quoted_interval(value: Any) -> str:
    """Formats both ends of an interval."""
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2:
        return f"{format_quoted(value[0])} to {format_quoted(value[1])}"
    return NOT_RECORDED


def text_facts(facts: Mapping[str, Any]) -> list[Any]:
    """Returns the facts of the texts of a validation, in the order of its report."""
    texts = facts.get("texts")
    return texts if isinstance(texts, list) else []
