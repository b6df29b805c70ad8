"""The limits that a gate may set: those that some candidates meet and others miss.

The end of an interval decides, so a limit at the very end of a figure's range is never met: the
interval of an agreement never reaches 1, that of a divergence never 0.
"""

from __future__ import annotations

from math import inf, isfinite
from typing import NamedTuple


class LimitRange(NamedTuple):
    """The possible limits of a figure."""

    low: float
    high: float
    noun: str
    is_closed: bool = False  # the ends themselves are possible
    percent_from: float = inf  # from here on a limit is plainly given in per cent
    excess_below: float = 0.0  # below this one it is plainly given as what it exceeds 1 by

    def contains(self, limit: float) -> bool:
        """Returns True if a figure can lie on either side of the limit."""
        return self.low < limit < self.high or (self.is_closed and limit in (self.low, self.high))

    def message(self, limit: float) -> str:
        """Says what a limit should be, for one that is not possible."""
        meant = self._suggest(limit)
        advice = f"; write {meant:.6g}" if self.contains(meant) else ""
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
        """The range in keywords of JSON Schema."""
        least, most = ("minimum", "maximum") if self.is_closed else EXCLUSIVE_KEYWORDS
        return {key: end for key, end in ((least, self.low), (most, self.high)) if isfinite(end)}


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
