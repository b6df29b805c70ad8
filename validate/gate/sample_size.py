"""The text or items that a figure comes from: are they enough, and how many would be?"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, floor, inf, log10
from typing import Any, NamedTuple

from scipy.special import stdtrit

from camelpress.reporting.stage_report import MIN_PIECES
from camelpress.validate.statistics.binomial import TAIL_PROBABILITY

MAX_REPORTED_CLUSTERS = 1e6  # a larger need is not put in figures
STANDARD_ERRORS = 2.0  # standard errors that an interval of many pieces reaches to either side

Interval = tuple[float, float] | None


class SampleSize(NamedTuple):
    """The independent pieces of text, or items of a task, that a figure comes from."""

    n: int  # tokens, or items
    clusters: int
    effective: float  # pieces of equal size that tell as much
    repeats: int  # pieces that repeat another and count for it
    are_items: bool = False

    @property
    def is_sufficient(self) -> bool:
        """Returns True if there are enough pieces for a verdict."""
        return self.effective >= MIN_PIECES

    @property
    def description(self) -> str:
        """The pieces in words."""
        noun = "item" if self.are_items else "piece"
        words = f"{self.clusters:,} {noun}{'' if self.clusters == 1 else 's'}"
        words = (
            words
            if self.are_items
            else f"{words.replace('1 ', 'one ', self.clusters == 1)} of text"
        )
        if self.repeats:
            words += f" ({self.repeats:,} of {self.clusters + self.repeats:,} repeat another)"
        if self.effective < 0.95 * self.clusters or self.clusters >= MIN_PIECES > self.effective:
            words += f" that count as {_rounded_down(self.effective)} of equal size"
        return words

    def advise_more(
        self, value: float, interval: Interval, threshold: float, lossless: float | None
    ) -> str:
        """Says how much would decide an open check, if what is added is like what there is.

        Args:
            value: the estimate.
            interval: its interval.
            threshold: of the check.
            lossless: the estimate of a candidate that is its reference.
        """
        more = "give more items" if self.are_items else "give more text"
        if interval is None or self.clusters < 2:
            return f"{more}, {self._amount(float(max(MIN_PIECES, 2 * self.clusters)))} at least"
        side = interval[1] if threshold > value else interval[0]
        gap, reach = abs(threshold - value), abs(side - value)
        equal = _required_clusters(self.effective, gap, reach, exact=value == lossless)
        pieces = equal * self.clusters / self.effective
        if pieces > MAX_REPORTED_CLUSTERS:
            return f"{more}, though the estimate is so near that hardly any amount decides"
        return f"{more}, about {self._amount(pieces)} would decide"

    def _amount(self, pieces: float) -> str:
        if self.are_items:
            return _rounded(pieces)
        tokens = pieces * self.n / max(1, self.clusters + self.repeats)
        return f"{_rounded(pieces)} pieces like these ({_rounded(tokens)} tokens)"


def read_sample_size(facts: Mapping[str, Any]) -> SampleSize:
    """The evidence of a part of a report; an old one does not tell repeats and sizes of pieces."""
    pieces = facts.get("sequences") or 0
    effective = facts.get("effective_sequences") or float(pieces)
    return SampleSize(facts.get("tokens") or 0, pieces, effective, facts.get("repeats") or 0)


def _required_clusters(pieces: float, gap: float, reach: float, *, exact: bool) -> float:
    """Pieces of equal size whose interval would end before the threshold.

    Args:
        pieces: that there are.
        gap: from the estimate to the threshold.
        reach: from the estimate to the end of the interval on the side of the threshold.
        exact: no piece shows a difference: the interval is what so many cannot show.
    """
    if gap <= 0:
        return inf
    if exact:
        return max(float(MIN_PIECES), STANDARD_ERRORS**2 / gap)
    error = reach / float(stdtrit(max(1.0, pieces - 1), 1 - TAIL_PROBABILITY))
    needed = pieces * (STANDARD_ERRORS * error / gap) ** 2
    return max(float(MIN_PIECES), needed, pieces + 1 if reach >= gap else 0.0)


def _rounded_down(number: float) -> str:
    """A number with two digits, and of one below `LEAST_PIECES` never that many."""
    return f"{floor(10 * number) / 10 if number < MIN_PIECES else number:.2g}"


def _rounded(number: float) -> str:
    """A count with two digits, rounded up."""
    unit = 10 ** max(0, ceil(log10(max(1.0, number))) - 2)
    return f"{ceil(number / unit) * unit:,}"
