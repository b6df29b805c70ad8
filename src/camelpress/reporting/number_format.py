"""Formats the quantities of a validation: units, digits, intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

from camelpress.reporting.metrics import COUNT_UNIT, METRICS, TASK_METRICS, Metric
from camelpress.reporting.verdict import Check

NBSP = "\u00a0"
NO_VALUE = "–"
Number = int | float  # JSON writes 1.0 as 1
Interval = Sequence[Number] | None


def metric_of(name: str) -> Metric:
    """Returns the metric of a check; an unknown check keeps its name and has no unit."""
    unknown = Metric(name, name.replace("_", " ").capitalize())
    return METRICS.get(name) or TASK_METRICS.get(name) or unknown


def check_title(check: Check) -> str:
    """Returns the title of a check, followed by its text or task."""
    return (
        f"{metric_of(check.name).title}, {check.part}"
        if check.part
        else metric_of(check.name).title
    )


def format_fixed(value: Number | None, decimals: int) -> str:
    """Formats a number with fixed decimals, or in scientific notation if they would not do."""
    if value is None or not math.isfinite(value):
        return "not finite"
    if (value and abs(value) < 0.5 * 10.0**-decimals) or abs(value) >= 1e9:
        return f"{value:.1e}"
    return f"{value:,.{decimals}f}"


def format_significant(value: Number | None, digits: int = 4) -> str:
    """Formats a number with significant digits."""
    if not value or not math.isfinite(value):
        return format_fixed(value, digits - 1)
    leading = math.floor(math.log10(abs(value)))
    return (
        f"{value:.{digits - 1}e}"
        if leading < -5
        else format_fixed(value, max(0, digits - 1 - leading))
    )


def add_unit(number: str, unit: str) -> str:
    """Appends a unit after a no-break space; a count has no unit."""
    return number if unit in ("", COUNT_UNIT) else f"{number}{NBSP}{unit}"


def format_estimate(name: str, value: Number | None, interval: Interval) -> tuple[str, str]:
    """Formats a value and its interval to the second digit of the interval's half-width.

    A percentage has at least two decimals, a count has none. Other values without an interval have
    four significant digits.
    """
    unit, scale = metric_of(name).unit, metric_of(name).scale
    if value is None:
        return NO_VALUE, NO_VALUE
    if unit == COUNT_UNIT:
        return format_fixed(scale * value, 0), NO_VALUE
    if interval is None:
        number = (
            format_fixed(scale * value, 2) if unit == "%" else format_significant(scale * value)
        )
        return add_unit(number, unit), NO_VALUE
    low, high = (scale * end for end in interval)
    half = abs(high - low) / 2
    min_decimals, decimals = (2, 2) if unit == "%" else (1, 4)
    if 0 < half < math.inf:
        decimals = min(7, max(min_decimals, 1 - math.floor(math.log10(half))))
    ends = f"{format_fixed(low, decimals)}{NBSP}–{NBSP}{format_fixed(high, decimals)}"
    return add_unit(format_fixed(scale * value, decimals), unit), ends


def format_points(share: Number, *, sign: bool = False) -> str:
    """Formats a score, or a difference of scores, as a percentage with two decimals."""
    return f"{100 * share:{'+' if sign else ''}.2f}"


def format_points_interval(interval: Interval, *, sign: bool = False) -> str:
    """Formats an interval of scores as percentages; an unbounded interval is a dash."""
    if not interval:
        return NO_VALUE
    return f"{format_points(interval[0], sign=sign)} to {format_points(interval[1], sign=sign)}"


def format_threshold(check: Check) -> str:
    """Formats a threshold after its direction, at most or at least."""
    unit, scale = metric_of(check.name).unit, metric_of(check.name).scale
    sign = "≥" if check.direction == "min" else "≤"
    return add_unit(f"{sign}{NBSP}{scale * check.threshold:.6g}", unit)


def allowance_used(check: Check) -> float | None:
    """Returns the position of the estimate between no loss (0) and the threshold (1)."""
    lossless = metric_of(check.name).lossless_value
    if lossless is None or check.threshold == lossless or check.estimate is None:
        return None
    return (check.estimate - lossless) / (check.threshold - lossless)


def format_bytes(count: Number) -> str:
    """Formats a number of bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return add_unit(f"{count:.3g}", unit)
        count /= 1000
    return add_unit(f"{count:,.3g}", "TB")
