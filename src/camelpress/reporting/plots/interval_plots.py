"""Draws values with their intervals: perplexity ratios by text, benchmark differences."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from camelpress.reporting.facts.task_facts import AverageFacts, TaskFacts
from camelpress.reporting.facts.validation_facts import ValidateFacts
from camelpress.reporting.number_format import format_threshold
from camelpress.reporting.plots.figure_style import (
    ACCENT,
    HEIGHT,
    LIMIT,
    MUTED,
    SvgFigure,
    axis_label,
    finish_drawing,
    new_figure,
)
from camelpress.reporting.plots.text_ratios import TextRatio, text_ratio, text_ratios
from camelpress.reporting.verdict import Check

ROW_HEIGHT = 30  # CSS px
MAX_AXIS_GROWTH = 4  # largest growth of the axis for long intervals, in spreads of the values


def plot_perplexity_ratios(facts: ValidateFacts, check: Check | None) -> SvgFigure:
    """Draws a row per text and one for all texts; the check gives the limit."""
    overall = text_ratio(facts, "all texts")
    rows = text_ratios(facts.texts)
    rows = rows if len(rows) == 1 else [overall, *rows]
    figure, axes = new_figure(max(HEIGHT, 100 + ROW_HEIGHT * len(rows)))
    for height, row in enumerate(rows):
        is_overall = height == 0 and len(rows) > 1
        marker, points = ("D", 9.0) if is_overall else ("o", 7.5)
        if row.ratio is not None:
            axes.plot(row.ratio, height, marker, markersize=points, color=ACCENT)
        if row.interval:
            axes.hlines(height, *row.interval, color=ACCENT, linewidth=2.5)
    axes.set_yticks(range(len(rows)), [axis_label(row.name) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    floor = facts.noise_floor and facts.noise_floor.perplexity_ratio_interval
    if floor:
        axes.axvspan(*floor, color=MUTED, alpha=0.25, linewidth=0)
    whole = _ratio_axis(axes, rows, check)
    caption = ["Bars are 95 % intervals; 1, the solid line, is no change."]
    caption += [f"The dashed line is the limit, {format_threshold(check)}."] if check else []
    caption += ["The grey band is what rounding alone does to the reference."] if floor else []
    caption += [] if whole else ["A bar that meets the edge goes on beyond it."]
    return finish_drawing(figure, "forest", "Perplexity ratio by text", " ".join(caption))


def _ratio_axis(axes: Axes, rows: Sequence[TextRatio], check: Check | None) -> bool:
    """Sets up the axis; returns False if an interval exceeds it."""
    core = [
        1.0,
        *(row.ratio for row in rows if row.ratio is not None),
        *([check.threshold] if check else []),
    ]
    ends = [end for row in rows for end in row.interval or ()]
    spread = max(core) - min(core) or 0.01
    low = max(min(core + ends), min(core) - MAX_AXIS_GROWTH * spread)
    high = min(max(core + ends), max(core) + MAX_AXIS_GROWTH * spread)
    whole = all(low <= end <= high for end in ends)
    margin = 0.08 * (high - low) or 0.01
    low, high = low - margin * whole, high + margin * whole
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("perplexity, candidate / reference")
    axes.axvline(1, color=MUTED, linewidth=1.2)
    if check:
        beyond = (low, check.threshold) if check.direction == "min" else (check.threshold, high)
        axes.axvspan(*beyond, color=LIMIT, alpha=0.1, linewidth=0)
        axes.axvline(check.threshold, color=LIMIT, linewidth=1.6, linestyle=(0, (4, 3)))
    return whole


def plot_benchmark_deltas(facts: ValidateFacts, checks: Sequence[Check]) -> SvgFigure:
    """Draws the difference of each benchmark and of their mean, with tolerated losses."""
    means = [facts.averages] if facts.averages else []
    rows: list[TaskFacts | AverageFacts] = [*facts.tasks, *means]
    labels = [*(task.label for task in facts.tasks), *(mean.name for mean in means)]
    margins = {
        check.part: -100 * check.threshold for check in checks if check.name == "accuracy_loss"
    }
    figure, axes = new_figure(max(HEIGHT, 100 + ROW_HEIGHT * len(rows)))
    for place, row in enumerate(rows):
        marker, points = ("D", 9.0) if row is facts.averages else ("o", 7.5)
        axes.plot(100 * row.difference, place, marker, markersize=points, color=ACCENT)
        if row.delta_interval:
            low, high = row.delta_interval
            axes.hlines(place, 100 * low, 100 * high, color=ACCENT, linewidth=2.5)
        if row.name in margins:
            axes.plot(margins[row.name], place, "|", markersize=18, color=LIMIT)
    axes.set_yticks(range(len(rows)), [*map(axis_label, labels)])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.axvline(0, color=MUTED, linewidth=1.2)
    axes.set_xlabel("score, candidate - reference (points)")
    caption = ["Bars are 95 % intervals; 0, the solid line, is no change."]
    caption += ["The diamond is the mean of benchmarks."] if means else []
    caption += ["An upright stroke is the largest loss that is tolerated."] if margins else []
    return finish_drawing(
        figure, "deltas", "Benchmarks, both models on the same items", " ".join(caption)
    )
