"""A check before it is decided, and how an interval decides it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Literal

from camelpress.reporting.stage_report import MIN_PIECES, Check, Verdict
from camelpress.validate.gate.sample_size import Interval, SampleSize

ZERO_WIDTH_SHARE = 1e-9  # share of the estimate; a narrower interval has collapsed
EMPTY_SAMPLE = SampleSize(0, 0, 0.0, 0)


@dataclass(frozen=True)
class PendingCheck:
    """One check before it is decided."""

    name: str
    part: str | None
    threshold: float
    direction: Literal["max", "min"]

    @property
    def limit(self) -> str:
        """The threshold in words."""
        return f"at {'most' if self.direction == 'max' else 'least'} {self.threshold:g}"

    def verdict(self, low: float, high: float) -> Verdict:
        """The place of an interval: within the threshold, beyond it, or on both sides."""
        limit = self.threshold
        if self.direction == "min":
            low, high, limit = -high, -low, -limit
        if high <= limit:
            return Verdict.PASS
        return Verdict.FAIL if low > limit else Verdict.INCONCLUSIVE

    def by_interval(
        self, value: float, interval: Interval, source: SampleSize, advice: str
    ) -> Check:
        """The check by an interval, which decides nothing where it comes from too little.

        Args:
            value: the estimate.
            interval: None where nothing bounds it.
            source: of the estimate.
            advice: how much would decide.
        """
        span = self._span(value, interval, source)
        if interval and not source.is_sufficient:
            fewest = f"no check is decided on fewer than {MIN_PIECES}"
            why = f"{span} comes from {source.description}; {fewest}: {advice}"
            return self.to_check(Verdict.INCONCLUSIVE, value, interval, source, why)
        verdict = self.verdict(*(interval or (-inf, inf)))
        why = {
            Verdict.PASS: f"{span} is {self.limit}",
            Verdict.FAIL: f"{span} should be {self.limit}",
            Verdict.INCONCLUSIVE: f"{span} holds the threshold {self.threshold:g}: {advice}",
        }[verdict]
        return self.to_check(verdict, value, interval, source, why)

    def by_value(self, value: float, number: str, source: SampleSize) -> Check:
        """The check by the value alone, as of a count; `number` is how it is written."""
        verdict = self.verdict(value, value)
        shall = "is" if verdict is Verdict.PASS else "should be"
        return self.to_check(verdict, value, None, source, f"{number} {shall} {self.limit}")

    def to_check(
        self,
        verdict: Verdict,
        estimate: float | None,
        interval: Interval,
        source: SampleSize,
        why: str,
    ) -> Check:
        """The check, decided."""
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
            reason=why,
        )

    def to_error(self, why: str, source: SampleSize = EMPTY_SAMPLE) -> Check:
        """The check where there is nothing to decide on."""
        return self.to_check(Verdict.ERROR, None, None, source, why)

    def _span(self, value: float, interval: Interval, source: SampleSize) -> str:
        if interval:
            return f"{value:.5g} (95 % interval {interval[0]:.5g} to {interval[1]:.5g})"
        if source.clusters > 1:
            return f"{value:.5g}, of which the report has no bounded interval,"
        return f"{value:.5g}, from {source.description} and so without an interval,"


def finite_interval(
    ends: Sequence[float | None] | None, value: float, least: float, most: float
) -> Interval:
    """An interval as a report has it, within what the figure can be; None where nothing bounds it.

    Earlier versions wrote intervals beyond a share's ends, and some without a width, which say that
    the same was seen twice and not that it is certain.
    """
    if ends is None or is_zero_width(ends, value):
        return None
    low, high = (inf if end is None else float(end) for end in ends)
    return (max(least, low), min(most, high)) if isfinite(low) and isfinite(high) else None


def is_zero_width(ends: Sequence[float | None] | None, value: float) -> bool:
    """Returns whether an interval has no width, as earlier versions wrote some."""
    match ends:
        case [float() | int() as low, float() | int() as high]:
            return high - low <= ZERO_WIDTH_SHARE * abs(value)
    return False
