"""Draws the plots of a card as one PNG: divergence percentiles and perplexity ratios."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from camelpress.reporting.facts.validation_facts import ValidateFacts
from camelpress.reporting.model_precision import with_precision
from camelpress.reporting.plots.text_ratios import text_ratios

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLOTS_FILE = "plots.png"
Bar = tuple[float, float, float]  # a ratio and both ends of its interval


def has_card_plots(facts: ValidateFacts) -> bool:
    """Returns True if a validation has values to draw."""
    return bool(_percentiles(facts) or _ratios(facts))


def draw_card_plots(facts: ValidateFacts, path: Path) -> None:
    """Writes the PNG; equal facts give equal bytes with the same matplotlib."""
    from camelpress.reporting.plots import figure_style  # only a drawing loads matplotlib

    label = figure_style.ascii_axis_label
    percentiles = {label(name): value for name, value in _percentiles(facts).items()}
    ratios = {label(name): bar for name, bar in reversed(_ratios(facts))}
    with figure_style.figure_style(figure_style.CARD_STYLE):
        figure, panels = figure_style.new_panels(bool(percentiles) + bool(ratios))
        if percentiles:
            _draw_percentiles(panels[0], percentiles)
        if ratios:
            _draw_ratios(panels[-1], ratios)
            reference = with_precision(facts.reference, "reference")
            panels[-1].set(xlabel=f"perplexity over the {reference}'s, 95 %")
        figure_style.write_png(figure, path)


def _draw_percentiles(axes: Axes, percentiles: Mapping[str, float]) -> None:
    axes.bar([*percentiles], [*percentiles.values()])
    axes.set(yscale="log", xlabel="percentile of tokens", ylabel="KL divergence, nats")


def _draw_ratios(axes: Axes, ratios: Mapping[str, Bar]) -> None:
    values = [value for value, _, _ in ratios.values()]
    reach = [[value - low, high - value] for value, low, high in ratios.values()]
    axes.errorbar(values, [*ratios], xerr=[*zip(*reach, strict=True)], fmt="o")
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.margins(y=0.3)


def _percentiles(facts: ValidateFacts) -> dict[str, float]:
    """Returns percentile to divergence for the values that a logarithmic axis can show."""
    return {
        name: value
        for name, value in (facts.kl_percentiles or {}).items()
        if value is not None and value > 0
    }


def _ratios(facts: ValidateFacts) -> list[tuple[str, Bar]]:
    """Returns the name of each text with its bar; the bar always holds the ratio."""
    return [
        (name, (value, min([value, *(ends or ())]), max([value, *(ends or ())])))
        for name, value, ends in text_ratios(facts.texts or [])
        if value is not None
    ]
