"""Reads the perplexity ratios that the plots of page and card show."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from camelpress.reporting.quoted_values import value_at


class TextRatio(NamedTuple):
    """Perplexity ratio of one text with its 95 % interval."""

    name: str
    ratio: float | None  # None if it or an end of its interval is not a finite number
    interval: tuple[float, float] | None  # None if the interval is unbounded


def text_ratios(texts: Iterable[Any]) -> list[TextRatio]:
    """Returns the perplexity ratios of texts, in their order."""
    return [_text_ratio(text) for text in texts]


def _text_ratio(text: Any) -> TextRatio:
    name, ratio = str(value_at(text, "name")), value_at(text, "perplexity_ratio")
    interval: tuple[float, float] | None = None
    match value_at(text, "perplexity_ratio_interval"):
        case [low, high]:
            interval = low, high
    if all(map(is_finite_number, [ratio, *(interval or ())])):
        return TextRatio(name, ratio, interval)
    return TextRatio(name, None, None)


def is_finite_number(value: Any) -> bool:
    """Returns True for an integer or float of finite size; a boolean is no number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
