"""Formats all numbers of reports, cards and gates: units, digits, intervals, missing values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from camelpress.reporting.metrics import COUNT_UNIT, METRICS, TASK_METRICS, Metric
from camelpress.reporting.verdict import Check

NBSP = "\u00a0"
NO_VALUE = "–"
NOT_RECORDED = "not recorded"
GATE_DIGITS = 5  # significant digits in the reason of a check
MIN_PLAIN_TICK = 1e-3  # ticks of a logarithmic axis below it are powers of ten
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


def format_count(count: Number, *, sign: bool = False) -> str:
    """Formats a count with separators of thousands; a mean of counts is rounded."""
    decimals = "" if isinstance(count, int) else ".0f"
    return f"{count:{'+' if sign else ''},{decimals}}"


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


def format_digits(value: Number, digits: int = 6) -> str:
    """Formats a number with at most `digits` significant digits, without trailing zeros."""
    return f"{value:.{digits}g}"


def format_tick(value: float) -> str:
    """Formats a tick of a logarithmic axis."""
    return format_digits(value) if value >= MIN_PLAIN_TICK else f"1e{round(math.log10(value))}"


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


def format_percent(share: Number, decimals: int) -> str:
    """Formats a share as a percentage with its unit."""
    return add_unit(f"{100 * share:.{decimals}f}", "%")


def format_points(share: Number | None, *, sign: bool = False) -> str:
    """Formats a score, or a difference of scores, as a percentage with two decimals, no unit."""
    return NO_VALUE if share is None else f"{100 * share:{'+' if sign else ''}.2f}"


def format_points_interval(interval: Interval, *, sign: bool = False) -> str:
    """Formats an interval of scores as percentages; an unbounded interval is a dash."""
    if not interval:
        return NO_VALUE
    return " to ".join(format_points(end, sign=sign) for end in interval)


def format_threshold(check: Check) -> str:
    """Formats a threshold after its direction, at most or at least."""
    unit, scale = metric_of(check.name).unit, metric_of(check.name).scale
    sign = "≥" if check.direction == "min" else "≤"
    return add_unit(f"{sign}{NBSP}{format_digits(scale * check.threshold)}", unit)


def format_limit(threshold: float, direction: Literal["max", "min"]) -> str:
    """Formats a threshold without a unit after its direction in words."""
    return f"at {'most' if direction == 'max' else 'least'} {format_digits(threshold)}"


def format_gate_interval(interval: Sequence[Number]) -> str:
    """Formats an interval in the reason of a check."""
    return " to ".join(format_digits(end, GATE_DIGITS) for end in interval)


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


def format_megabytes(nbytes: Number) -> str:
    """Formats bytes as MB with one decimal."""
    return f"{nbytes / 1e6:,.1f} MB"


def format_release_bytes(nbytes: int | None) -> str:
    """Formats bytes as MB or GB with one decimal."""
    if nbytes is None:
        return NOT_RECORDED
    return f"{nbytes / 1e9:,.1f} GB" if nbytes >= 1e9 else format_megabytes(nbytes)


def format_quoted(value: Any) -> str:
    """Formats a value of a report or config with six digits, yes or no; None is not recorded."""
    if value is None:
        return NOT_RECORDED
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return format_count(value)
    return format_digits(value) if isinstance(value, float) else str(value)


def format_quoted_interval(value: Any) -> str:
    """Formats both ends of an interval of a report."""
    return " to ".join(map(format_quoted, value)) if _is_interval(value) else NOT_RECORDED


def format_quoted_percent(value: Any, *, sign: bool = False) -> str:
    """Formats a score of a report as a percentage with two decimals."""
    return f"{format_points(value, sign=sign)} %" if isinstance(value, float) else NOT_RECORDED


def format_quoted_percent_interval(value: Any) -> str:
    """Formats both ends of an interval of a difference of scores, with signs."""
    if not _is_interval(value):
        return NOT_RECORDED
    return " to ".join(format_quoted_percent(end, sign=True) for end in value)


def _is_interval(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2
