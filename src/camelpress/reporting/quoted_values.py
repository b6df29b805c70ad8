"""Values of reports and configs as people read them: digits, yes and no, never a blank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NOT_RECORDED = "not recorded"


def value_at(source: Any, path: str) -> Any:
    """The value at a dotted path in nested plain data, or None."""
    for part in path.split("."):
        source = source.get(part) if isinstance(source, Mapping) else None
    return source


def format_quoted(value: Any) -> str:
    """A value for people: six digits, yes and no, and never a blank."""
    if value is None:
        return NOT_RECORDED
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def format_quoted_interval(value: Any) -> str:
    """Both ends of an interval."""
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2:
        return f"{format_quoted(value[0])} to {format_quoted(value[1])}"
    return NOT_RECORDED


def text_facts(facts: Mapping[str, Any]) -> list[Any]:
    """The texts of a validation, in its order."""
    found = facts.get("texts")
    return found if isinstance(found, list) else []
