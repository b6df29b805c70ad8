"""Draws the figures of a validation page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from camelpress.reporting import sentences
from camelpress.reporting.facts.validation_facts import BinnedMeans, BlockError, ValidateFacts
from camelpress.reporting.number_format import Number, format_digits, format_tick
from camelpress.reporting.plots.figure_style import (
    ACCENT,
    HEIGHT,
    MUTED,
    PAGE_STYLE,
    SvgFigure,
    figure_style,
    finish_drawing,
    new_figure,
)
from camelpress.reporting.plots.interval_plots import plot_benchmark_deltas, plot_perplexity_ratios
from camelpress.reporting.report_classes import ValidationReport
from camelpress.reporting.verdict import Check

LETTER_WIDTH = 0.023  # width of a letter above the histogram, as a fraction of the axis
MARKED_PERCENTILES = {"50": "median", "max": "largest", "floor": "rounding alone"}
PADDING_BINS = 1  # empty bins on either side of the histogram


class BinnedMeanPlot(NamedTuple):
    """Plot of a mean over stretches of equal width."""

    fact: str
    quantity: str
    title: str
    along: str
    axis: str
    caption: str


# fmt: off
STEP_PLOTS = (
    BinnedMeanPlot("by_position", "kl_mean", "KL divergence by position",
            "position in the window (tokens)", "mean KL (nats per token)",
            "Each step is the mean over the tokens at these positions."),
    BinnedMeanPlot("by_position", "log_ratio", "Log perplexity ratio by position",
            "position in the window (tokens)", "mean log ratio (nats per token)",
            "Above 0 the candidate predicts worse than the reference, below 0 better."),
    BinnedMeanPlot("kl_by_confidence", "kl_mean", "KL divergence by confidence",
            "probability of the reference's first choice", "mean KL (nats per token)",
            "Each step is the mean over the tokens where the reference was so sure."),
)
# fmt: on


def validation_drawings(report: ValidationReport) -> list[SvgFigure]:
    """Draws all figures that the facts allow, in the order of the page."""
    facts = report.facts
    with figure_style(PAGE_STYLE):
        return [
            *([plot_benchmark_deltas(facts, report.checks)] if facts.tasks else []),
            *(_token_figures(facts, report.checks) if facts.tokens else []),
        ]


def _token_figures(facts: ValidateFacts, checks: Sequence[Check]) -> list[SvgFigure]:
    ratios = [check for check in checks if check.name == "perplexity_ratio"]
    overall = next((check for check in ratios if check.part is None), None)
    steps = [(getattr(facts, plot.fact), plot) for plot in STEP_PLOTS]
    return [
        plot_perplexity_ratios(facts, overall),
        plot_kl_histogram(facts),
        *(binned_mean_plot(stretches, plot) for stretches, plot in steps if stretches),
        *([block_error_plot(facts.blocks)] if facts.blocks else []),
    ]


def plot_kl_histogram(facts: ValidateFacts) -> SvgFigure:
    """Draws the distribution of the KL divergence over tokens on a logarithmic axis."""
    figure, axes = new_figure(HEIGHT)
    edges, shares, folded = _occupied_bins(facts.kl_histogram.edges, facts.kl_histogram.counts)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(numticks=6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("KL divergence of a token (nats)")
    axes.set_ylabel("tokens (%)")
    axes.set_xlim(edges[0], edges[-1])
    floor = facts.noise_floor and facts.noise_floor.kl_mean
    if any(shares):
        axes.stairs(shares, edges, fill=True, color=ACCENT, alpha=0.3, linewidth=0)
        axes.stairs(shares, edges, color=ACCENT, linewidth=1.6)
        marks = {**facts.kl_percentiles, **({"floor": floor} if floor else {})}
        _percentile_marks(axes, marks, edges)
    else:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no tokens counted", transform=axes.transAxes, ha="center")
    caption = sentences.percentile_sentence(facts.kl_percentiles)
    caption += (
        " Rounding alone, without a quantized model, gives the mean that is marked."
        if floor
        else ""
    )
    caption += " The outermost steps also hold what lies beyond them." if folded else ""
    return finish_drawing(figure, "histogram", "KL divergence per token", caption)


def _occupied_bins(
    edges: Sequence[Number], counts: Sequence[int]
) -> tuple[list[Number], list[float], bool]:
    """Returns the edges of occupied bins, their percentage of tokens, and whether bins were folded.

    The axis begins at the lowest thousandth of the tokens; its first bin takes the tokens below.
    """
    edges = [edges[0] or edges[1] ** 2 / edges[2], *edges[1:]]  # 0 stands for "below"
    total, summed = sum(counts) or 1, [*accumulate(counts)]
    first = sum(below < total / 1000 for below in summed) if any(counts) else 0
    last = max((place for place, count in enumerate(counts) if count), default=len(counts))
    start, stop = max(0, first - PADDING_BINS), last + 1 + PADDING_BINS
    shown = [0] * (first - start) + [summed[first], *counts[first + 1 : stop]]
    folded = summed[first] > counts[first] or first == 0 or last + 1 == len(counts)
    return [*edges[start : stop + 1]], [100 * count / total for count in shown], folded


def _percentile_marks(
    axes: Axes, percentiles: Mapping[str, Number | None], edges: list[Number]
) -> None:
    """Draws a line per percentile and its name in the lowest free row above the axes."""
    rows: list[float] = []  # end of the last name in each row, as a fraction of the axis
    decades = math.log10(edges[-1] / edges[0])
    for name, value in sorted(percentiles.items(), key=lambda mark: mark[1] or 0):
        if value is None or not edges[0] < value <= edges[-1]:
            continue
        axes.axvline(value, color=MUTED, linewidth=1.2, linestyle=(0, (1, 2)))
        label = MARKED_PERCENTILES.get(name, f"{name} %")
        centre, half = math.log10(value / edges[0]) / decades, LETTER_WIDTH * len(label) / 2
        row = next((row for row, end in enumerate(rows) if end < centre - half), len(rows))
        rows[row : row + 1] = [centre + half]
        axes.annotate(
            label,
            (value, 1),
            xycoords=axes.get_xaxis_transform(),
            xytext=(0, 4 + 15 * row),
            textcoords="offset points",
            ha="center",
            fontsize=12,
        )


def binned_mean_plot(stretches: BinnedMeans, plot: BinnedMeanPlot) -> SvgFigure:
    """Draws a mean per token over stretches; a stretch without tokens is a gap."""
    means = [
        math.nan if mean is None or not count else mean
        for mean, count in zip(getattr(stretches, plot.quantity), stretches.tokens, strict=True)
    ]
    figure, axes = new_figure(HEIGHT)
    axes.stairs(means, fill=True, color=ACCENT, alpha=0.3, linewidth=0)
    axes.stairs(means, color=ACCENT, linewidth=1.6)
    axes.axhline(0, color=MUTED, linewidth=1.2)
    every = math.ceil(len(means) / 6)
    edges = [format_digits(edge) for edge in stretches.edges]
    axes.set_xticks(range(0, len(edges), every), edges[::every])
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.grid(visible=False, axis="x")
    axes.set_xlabel(plot.along)
    axes.set_ylabel(plot.axis)
    return finish_drawing(figure, f"{plot.fact}-{plot.quantity}", plot.title, plot.caption)


def block_error_plot(blocks: Sequence[BlockError]) -> SvgFigure:
    """Draws the relative error of the hidden states behind each block."""
    errors = [block.relative_error for block in blocks]
    figure, axes = new_figure(HEIGHT)
    shown = [math.nan if error is None else 100 * error for error in errors]
    axes.plot(range(len(shown)), shown, "o-", color=ACCENT, linewidth=1.6, markersize=4)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("decoder block")
    axes.set_ylabel("relative error (%)")
    caption = "Relative difference of the hidden states that leave a block, token by token."
    return finish_drawing(figure, "blocks", "Error by block", caption)
