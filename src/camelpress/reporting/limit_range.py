"""Ranges of the limits in a gate: some candidates meet a limit in its range, others miss it.

The end of an interval decides. A limit at the very end of a figure's range is never met, because
the interval of an agreement never reaches 1 and the interval of a divergence never reaches 0.
"""

from __future__ import annotations

from math import inf, isfinite
from typing import NamedTuple


class LimitRange(NamedTuple):
    """Range of the possible limits of a figure."""

    low: float
    high: float
    noun: str
    is_closed: bool = False  # True if the ends are possible limits
    percent_from: float = inf  # smallest limit read as a percentage
    excess_below: float = 0.0  # largest limit read as an excess over 1

    def contains(self, limit: float) -> bool:
        """Returns True if a figure can lie on either side of the limit."""
        return self.low < limit < self.high or (self.is_closed and limit in (self.low, self.high))

    def message(self, limit: float) -> str:
        """Describes the possible limits and suggests a correction of an impossible limit."""
        suggestion = self._suggest(limit)
        advice = f"; write {suggestion:.6g}" if self.contains(suggestion) else ""
        return f"Input should be {self.noun} {self._span}{advice}"

    @property
    def _span(self) -> str:
        if isfinite(self.high):
            excluded = "" if self.is_closed else ", both excluded"
            return f"between {self.low:g} and {self.high:g}{excluded}"
        return f"of {self.low:g} or more" if self.is_closed else f"above {self.low:g}"

    def _suggest(self, limit: float) -> float:
        if limit >= self.percent_from:
            return limit / 100
        return 1 + limit if 0 < limit < self.excess_below else limit

    @property
    def schema(self) -> dict[str, float]:
        """Range in the keywords of JSON Schema."""
        keywords = ("minimum", "maximum") if self.is_closed else EXCLUSIVE_KEYWORDS
        ends = zip(keywords, (self.low, self.high), strict=True)
        return {keyword: end for keyword, end in ends if isfinite(end)}


EXCLUSIVE_KEYWORDS = ("exclusiveMinimum", "exclusiveMaximum")

# fmt: off
RATIO =       LimitRange(0.5, 100.0, "a ratio of perplexities (1 is no change)", True, 100.0, 0.5)
DIVERGENCE =  LimitRange(0.0, inf,   "a divergence in nats")
AGREEMENT =   LimitRange(0.0, 1.0,   "a share of tokens", percent_from=50.0)
NON_NEGATIVE =      LimitRange(0.0, inf,   "a number", True)
BLOCK_ERROR = LimitRange(0.0, 1.0,   "a relative error", True, 1.0)
ITEM_SHARE =       LimitRange(0.0, 1.0,   "a share of items", percent_from=1.0)
PROBABILITY = LimitRange(0.0, 1.0,   "a probability", percent_from=1.0)
# fmt: on
