"""Reads the perplexity ratios that the plots of page and card show."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from camelpress.reporting.facts.validation_facts import TextFacts, TextFigures
from camelpress.reporting.metrics import METRICS


class TextRatio(NamedTuple):
    """Perplexity ratio of one text with its 95 % interval."""

    name: str
    ratio: float | None  # None if it or an end of its interval is not a finite number
    interval: tuple[float, float] | None  # None if the interval is unbounded


def text_ratios(texts: Iterable[TextFacts]) -> list[TextRatio]:
    """Returns the perplexity ratios of texts, in their order."""
    return [text_ratio(text, str(text.name)) for text in texts]


def text_ratio(figures: TextFigures, name: str) -> TextRatio:
    """Returns the perplexity ratio of figures that may be damaged, under a name."""
    metric = METRICS["perplexity_ratio"]
    ratio = metric.value(figures)
    interval: tuple[float, float] | None = None
    match metric.interval(figures):
        case [low, high]:
            interval = low, high
    if all(map(is_finite_number, [ratio, *(interval or ())])):
        return TextRatio(name, ratio, interval)
    return TextRatio(name, None, None)


def is_finite_number(value: Any) -> bool:
    """Returns True for an integer or float of finite size; a boolean is no number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
