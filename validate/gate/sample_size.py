"""Sample size of a metric, and an estimate of a sufficient one."""

from __future__ import annotations

from math import ceil, floor, inf, log10
from typing import NamedTuple

from scipy.special import stdtrit

from camelpress.reporting.facts.validation_facts import TextFigures
from camelpress.reporting.number_format import format_count, format_digits
from camelpress.reporting.verdict import MIN_PIECES
from camelpress.validate.statistics.binomial import TAIL_PROBABILITY

MAX_REPORTED_CLUSTERS = 1e6  # larger estimates are given in words
STANDARD_ERRORS = 2.0  # standard errors on either side of an interval of many pieces

Interval = tuple[float, float] | None


class SampleSize(NamedTuple):
    """Independent pieces of text, or items of a task, behind a metric."""

    n: int  # tokens, or items
    clusters: int
    effective: float  # pieces of equal size with the same evidence
    repeats: int  # pieces that repeat another
    are_items: bool = False

    @property
    def is_sufficient(self) -> bool:
        """True if there are enough pieces for a verdict."""
        return self.effective >= MIN_PIECES

    @property
    def description(self) -> str:
        """The sample size in words."""
        noun = "item" if self.are_items else "piece"
        words = f"{format_count(self.clusters)} {noun}{'' if self.clusters == 1 else 's'}"
        words = (
            words
            if self.are_items
            else f"{words.replace('1 ', 'one ', self.clusters == 1)} of text"
        )
        if self.repeats:
            total = format_count(self.clusters + self.repeats)
            words += f" ({format_count(self.repeats)} of {total} repeat another)"
        if self.effective < 0.95 * self.clusters or self.clusters >= MIN_PIECES > self.effective:
            words += f" that count as {_rounded_down(self.effective)} of equal size"
        return words

    def advise_more(
        self, value: float, interval: Interval, threshold: float, lossless: float | None
    ) -> str:
        """Estimates the amount of similar data that decides an open check.

        Args:
            value: the estimate.
            interval: its interval.
            threshold: limit of the check.
            lossless: estimate of a candidate identical to its reference.
        """
        request = "give more items" if self.are_items else "give more text"
        if interval is None or self.clusters < 2:
            return f"{request}, {self._amount(float(max(MIN_PIECES, 2 * self.clusters)))} at least"
        end = interval[1] if threshold > value else interval[0]
        gap, reach = abs(threshold - value), abs(end - value)
        equal_pieces = _required_clusters(self.effective, gap, reach, exact=value == lossless)
        pieces = equal_pieces * self.clusters / self.effective
        if pieces > MAX_REPORTED_CLUSTERS:
            return f"{request}, but the estimate is too near for any reasonable amount to decide"
        return f"{request}, about {self._amount(pieces)} would decide"

    def _amount(self, pieces: float) -> str:
        if self.are_items:
            return _rounded(pieces)
        tokens = pieces * self.n / max(1, self.clusters + self.repeats)
        return f"{_rounded(pieces)} pieces like these ({_rounded(tokens)} tokens)"


def read_sample_size(figures: TextFigures | None) -> SampleSize:
    """Reads the sample size of some figures; None has no tokens.

    Reports of earlier versions lack repetitions and effective sizes.
    """
    if figures is None:
        return SampleSize(0, 0, 0.0, 0)
    effective = figures.effective_sequences or float(figures.sequences)
    return SampleSize(figures.tokens, figures.sequences, effective, figures.repeats)


def _required_clusters(pieces: float, gap: float, reach: float, *, exact: bool) -> float:
    """Returns the number of equal pieces whose interval ends before the limit.

    Args:
        pieces: present number of pieces.
        gap: distance from the estimate to the limit.
        reach: distance from the estimate to the end of its interval on the side of the limit.
        exact: True if no piece shows a difference; the interval then comes from the number alone.
    """
    if gap <= 0:
        return inf
    if exact:
        return max(float(MIN_PIECES), STANDARD_ERRORS**2 / gap)
    error = reach / float(stdtrit(max(1.0, pieces - 1), 1 - TAIL_PROBABILITY))
    required = pieces * (STANDARD_ERRORS * error / gap) ** 2
    return max(float(MIN_PIECES), required, pieces + 1 if reach >= gap else 0.0)


def _rounded_down(number: float) -> str:
    """Returns a number with two digits; one below `MIN_PIECES` never rounds up to it."""
    return format_digits(floor(10 * number) / 10 if number < MIN_PIECES else number, 2)


def _rounded(number: float) -> str:
    """Returns a count with two digits, rounded up."""
    unit = 10 ** max(0, ceil(log10(max(1.0, number))) - 2)
    return format_count(ceil(number / unit) * unit)
