"""How a validation's quantities are written: units, digits, intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

from camelpress.reporting.metrics import COUNT_UNIT, METRICS, TASK_METRICS, Metric
from camelpress.reporting.stage_report import Check

NBSP = "\u00a0"
NO_VALUE = "–"
Number = int | float  # facts come from JSON, where 1 is as good as 1.0
Interval = Sequence[Number] | None


def metric_of(name: str) -> Metric:
    """The row of a quantity; an unknown one keeps the report's name and has no unit."""
    unknown = Metric(name.replace("_", " ").capitalize(), "", 1.0, None, "", True)
    return METRICS.get(name) or TASK_METRICS.get(name) or unknown


def check_title(check: Check) -> str:
    """What a check is called, with the text or task that it is about."""
    return (
        f"{metric_of(check.name).title}, {check.part}"
        if check.part
        else metric_of(check.name).title
    )


def format_fixed(value: Number | None, decimals: int) -> str:
    """A number with so many decimals, unless it is too small or too large for that."""
    if value is None or not math.isfinite(value):
        return "not finite"
    if (value and abs(value) < 0.5 * 10.0**-decimals) or abs(value) >= 1e9:
        return f"{value:.1e}"
    return f"{value:,.{decimals}f}"


def format_significant(value: Number | None, digits: int = 4) -> str:
    """A number with so many significant digits."""
    if not value or not math.isfinite(value):
        return format_fixed(value, digits - 1)
    leading = math.floor(math.log10(abs(value)))
    return (
        f"{value:.{digits - 1}e}"
        if leading < -5
        else format_fixed(value, max(0, digits - 1 - leading))
    )


def add_unit(number: str, unit: str) -> str:
    """The unit behind a space that does not break; a count has none."""
    return number if unit in ("", COUNT_UNIT) else f"{number}{NBSP}{unit}"


def format_estimate(name: str, value: Number | None, interval: Interval) -> tuple[str, str]:
    """A value and its interval, down to the second digit of the interval's half-width.

    A per cent has two decimals at least, a count has none. Without an interval, all else has four
    digits.
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
    least, decimals = (2, 2) if unit == "%" else (1, 4)
    if 0 < half < math.inf:
        decimals = min(7, max(least, 1 - math.floor(math.log10(half))))
    ends = f"{format_fixed(low, decimals)}{NBSP}–{NBSP}{format_fixed(high, decimals)}"
    return add_unit(format_fixed(scale * value, decimals), unit), ends


def format_points(share: Number, *, sign: bool = False) -> str:
    """A score or a difference of scores, in per cent with two decimals."""
    return f"{100 * share:{'+' if sign else ''}.2f}"


def format_points_interval(interval: Interval, *, sign: bool = False) -> str:
    """Both ends of an interval of scores, in per cent; a dash where nothing bounds it."""
    if not interval:
        return NO_VALUE
    return f"{format_points(interval[0], sign=sign)} to {format_points(interval[1], sign=sign)}"


def format_threshold(check: Check) -> str:
    """The threshold with its direction: at most, at least."""
    unit, scale = metric_of(check.name).unit, metric_of(check.name).scale
    sign = "≥" if check.direction == "min" else "≤"
    return add_unit(f"{sign}{NBSP}{scale * check.threshold:.6g}", unit)


def allowance_used(check: Check) -> float | None:
    """How far the estimate lies on the way from no loss (0) to the threshold (1)."""
    lossless = metric_of(check.name).lossless_value
    if lossless is None or check.threshold == lossless or check.estimate is None:
        return None
    return (check.estimate - lossless) / (check.threshold - lossless)


def format_bytes(count: Number) -> str:
    """Bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return add_unit(f"{count:.3g}", unit)
        count /= 1000
    return add_unit(f"{count:,.3g}", "TB")
