"""A check before its verdict, and the verdict of an interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Literal

from camelpress.reporting.number_format import (
    GATE_DIGITS,
    format_digits,
    format_gate_interval,
    format_limit,
)
from camelpress.reporting.verdict import MIN_PIECES, Check, Verdict
from camelpress.validate.gate.sample_size import Interval, SampleSize

ZERO_WIDTH_SHARE = 1e-9  # share of the estimate; narrower intervals have no width
EMPTY_SAMPLE = SampleSize(0, 0, 0.0, 0)


@dataclass(frozen=True)
class PendingCheck:
    """A check before its verdict."""

    name: str
    part: str | None
    threshold: float
    direction: Literal["max", "min"]

    @property
    def limit(self) -> str:
        """The limit in words."""
        return format_limit(self.threshold, self.direction)

    def verdict(self, low: float, high: float) -> Verdict:
        """Returns PASS for an interval within the limit, FAIL beyond it, else INCONCLUSIVE."""
        limit = self.threshold
        if self.direction == "min":
            low, high, limit = -high, -low, -limit
        if high <= limit:
            return Verdict.PASS
        return Verdict.FAIL if low > limit else Verdict.INCONCLUSIVE

    def decide_by_interval(
        self, value: float, interval: Interval, source: SampleSize, advice: str
    ) -> Check:
        """Decides the check by an interval; too small a sample is INCONCLUSIVE.

        Args:
            value: the estimate.
            interval: its interval; None if it is unbounded.
            source: sample size of the estimate.
            advice: hint about a sufficient sample size.
        """
        span = self._span(value, interval, source)
        if interval and not source.is_sufficient:
            minimum = f"no check is decided on fewer than {MIN_PIECES}"
            reason = f"{span} comes from {source.description}; {minimum}: {advice}"
            return self.to_check(Verdict.INCONCLUSIVE, value, interval, source, reason)
        verdict = self.verdict(*(interval or (-inf, inf)))
        threshold = format_digits(self.threshold)
        reason = {
            Verdict.PASS: f"{span} is {self.limit}",
            Verdict.FAIL: f"{span} should be {self.limit}",
            Verdict.INCONCLUSIVE: f"{span} holds the threshold {threshold}: {advice}",
        }[verdict]
        return self.to_check(verdict, value, interval, source, reason)

    def decide_by_value(self, value: float, number: str, source: SampleSize) -> Check:
        """Decides the check by an exact value such as a count; `number` is its text."""
        verdict = self.verdict(value, value)
        verb = "is" if verdict is Verdict.PASS else "should be"
        return self.to_check(verdict, value, None, source, f"{number} {verb} {self.limit}")

    def to_check(
        self,
        verdict: Verdict,
        estimate: float | None,
        interval: Interval,
        source: SampleSize,
        reason: str,
    ) -> Check:
        """Returns the decided check."""
        return Check(
            name=self.name,
            part=self.part,
            verdict=verdict,
            estimate=estimate,
            interval=interval,
            threshold=self.threshold,
            direction=self.direction,
            n=source.n,
            clusters=source.clusters,
            reason=reason,
        )

    def to_error(self, reason: str, source: SampleSize = EMPTY_SAMPLE) -> Check:
        """Returns the check as an ERROR, without an estimate."""
        return self.to_check(Verdict.ERROR, None, None, source, reason)

    def _span(self, value: float, interval: Interval, source: SampleSize) -> str:
        number = format_digits(value, GATE_DIGITS)
        if interval:
            return f"{number} (95 % interval {format_gate_interval(interval)})"
        if source.clusters > 1:
            return f"{number}, of which the report has no bounded interval,"
        return f"{number}, from {source.description} and so without an interval,"


def finite_interval(
    ends: Sequence[float | None] | None, value: float, minimum: float, maximum: float
) -> Interval:
    """Clips an interval of a report to the range of the metric; None if it is unbounded.

    Reports of earlier versions may have intervals beyond the range, or of zero width; these show
    equal observations, not certainty.
    """
    if ends is None or is_zero_width(ends, value):
        return None
    low, high = (inf if end is None else float(end) for end in ends)
    return (max(minimum, low), min(maximum, high)) if isfinite(low) and isfinite(high) else None


def is_zero_width(ends: Sequence[float | None] | None, value: float) -> bool:
    """Returns True if an interval has no width, as in reports of earlier versions."""
    match ends:
        case [float() | int() as low, float() | int() as high]:
            return high - low <= ZERO_WIDTH_SHARE * abs(value)
    return False
