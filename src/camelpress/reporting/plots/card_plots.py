"""Draws the plots of a card as one PNG: divergence percentiles and perplexity ratios."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from camelpress.reporting.model_precision import with_precision
from camelpress.reporting.quoted_values import text_facts, value_at

PLOTS_FILE = "plots.png"
PANEL_INCHES, DPI = (4.2, 2.8), 150  # size of one panel in inches, dots per inch
COLOUR = "#3b6ea5"


def has_card_plots(facts: Mapping[str, Any]) -> bool:
    """Returns True if a validation has values to draw."""
    return bool(_percentiles(facts) or _ratios(facts))


def draw_card_plots(facts: Mapping[str, Any], path: Path) -> None:
    """Writes the PNG; equal facts give equal bytes with the same matplotlib."""
    from matplotlib import style
    from matplotlib.figure import Figure

    percentiles, ratios = _percentiles(facts), _ratios(facts)
    panels = [panel for panel in (percentiles, ratios) if panel]
    with style.context("default"):
        figure = Figure(
            figsize=(PANEL_INCHES[0] * len(panels), PANEL_INCHES[1]), dpi=DPI, layout="constrained"
        )
        axes = iter(figure.subplots(1, len(panels), squeeze=False)[0])
        if percentiles:
            plot = next(axes)
            plot.bar(list(percentiles), list(percentiles.values()), color=COLOUR)
            plot.set(yscale="log", xlabel="percentile of tokens", ylabel="KL divergence, nats")
        if ratios:
            plot = next(axes)
            values = [value for value, _, _ in ratios.values()]
            reach = [[value - low, high - value] for value, low, high in ratios.values()]
            plot.errorbar(
                values, list(ratios), xerr=list(zip(*reach, strict=True)), fmt="o", color=COLOUR
            )
            plot.axvline(1, color="grey", linewidth=0.8)
            plot.margins(y=0.3)
            reference = with_precision(facts.get("reference"), "reference")
            plot.set(xlabel=f"perplexity over the {reference}'s, 95 %")
        figure.savefig(path, format="png", metadata={"Software": None})


def _percentiles(facts: Mapping[str, Any]) -> dict[str, float]:
    """Returns percentile to divergence for the values that a logarithmic axis can show."""
    percentiles = facts.get("kl_percentiles")
    return {
        _plot_label(name): value
        for name, value in (percentiles.items() if isinstance(percentiles, Mapping) else ())
        if _is_number(value) and value > 0
    }


def _ratios(facts: Mapping[str, Any]) -> dict[str, tuple[float, float, float]]:
    """Returns text to ratio and both ends of its interval, last text first."""
    ratios = {}
    for text in reversed(text_facts(facts)):
        ratio, ends = (
            value_at(text, "perplexity_ratio"),
            value_at(text, "perplexity_ratio_interval"),
        )
        is_pair = isinstance(ends, list | tuple) and len(ends) == 2
        numbers = [ratio, *(ends if is_pair else (ratio, ratio))]
        if all(map(_is_number, numbers)):
            value, low, high = numbers
            ratios[_plot_label(str(value_at(text, "name")))] = (
                value,
                min(low, value),
                max(high, value),
            )
    return ratios


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _plot_label(text: str) -> str:
    """Shortens a text and removes the signs of matplotlib's mathematics."""
    shown = "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in text)
    return shown.replace("$", "?")[:24]
