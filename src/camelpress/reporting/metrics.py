# ruff: noqa: E501 - a table
"""Table of the metrics that a gate can limit: title, unit, place in a report, possible limits.

A new figure of a report becomes a check with a row here and a field of `settings.TextGate`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from camelpress.reporting.limit_range import (
    AGREEMENT,
    BLOCK_ERROR,
    DIVERGENCE,
    ITEM_SHARE,
    NON_NEGATIVE,
    PROBABILITY,
    RATIO,
    LimitRange,
)

COUNT_UNIT = "#"


class Metric(NamedTuple):
    """One measured quantity.

    The path leads through the keys of the judged facts: all facts, one text, or the beginnings of
    windows. `*` stands for the largest item of a list. The interval of `a/b` is at `a_interval/b`.
    """

    title: str
    unit: str  # `COUNT_UNIT` for a count
    scale: float  # factor from the report's value to the unit
    lossless_value: float | None  # value of a candidate equal to its reference
    path: str
    has_interval: bool  # True if the interval decides, False if the value alone decides
    limits: LimitRange = NON_NEGATIVE  # possible limits in a gate

    @property
    def interval(self) -> str:
        """Path to the interval."""
        head, slash, rest = self.path.partition("/")
        return f"{head}_interval{slash}{rest}"


# fmt: off
METRICS = {  # in a gate          title                           unit    scale  lossless fact, by interval, limits
    "perplexity_ratio": Metric("Perplexity ratio",                "",     1.0,   1.0, "perplexity_ratio", True, RATIO),
    "kl_mean":          Metric("Mean KL divergence",              "nats", 1.0,   0.0, "kl_mean", True, DIVERGENCE),
    "kl_reverse_mean":  Metric("Mean reverse KL divergence",      "nats", 1.0,   0.0, "kl_reverse_mean", True, DIVERGENCE),
    "kl_p90":           Metric("KL divergence, 90th percentile",  "nats", 1.0,   0.0, "kl_percentiles/90", True, DIVERGENCE),
    "kl_p99":           Metric("KL divergence, 99th percentile",  "nats", 1.0,   0.0, "kl_percentiles/99", True, DIVERGENCE),
    "kl_p99_9":         Metric("KL divergence, 99.9th percentile", "nats", 1.0,  0.0, "kl_percentiles/99.9", True, DIVERGENCE),
    "top1_agreement":   Metric("Top-1 agreement",                 "%",    100.0, 1.0, "top1_agreement", True, AGREEMENT),
    "top5_agreement":   Metric("Top-5 agreement",                 "%",    100.0, 1.0, "top5_agreement", True, AGREEMENT),
    "non_finite":       Metric("Predictions that are not finite", COUNT_UNIT,  1.0,   0.0, "non_finite/candidate", False, NON_NEGATIVE),
    "noise_floor":      Metric("Mean KL divergence of rounding",  "nats", 1.0,   0.0, "noise_floor/kl_mean", False, NON_NEGATIVE),
    "block_error":      Metric("Largest error of a block",        "%",    100.0, 0.0, "blocks/*/relative_error", False, BLOCK_ERROR),
}
TASK_METRICS = {  # by the name of the check
    "accuracy_loss":    Metric("Loss of accuracy",                "%",    100.0, 0.0, "", True, ITEM_SHARE),
    "significant_loss": Metric("p-value of no loss",              "",     1.0,  None, "", False, PROBABILITY),
}
# fmt: on


def find_fact(facts: Any, path: str) -> Any:
    """Returns the value at a path, the largest one for a `*`, or None."""
    head, _, rest = path.partition("/")
    if head == "*":
        values = [find_fact(item, rest) for item in facts] if isinstance(facts, list) else []
        return max((value for value in values if value is not None), default=None)
    inner = facts.get(head) if isinstance(facts, Mapping) else None
    return find_fact(inner, rest) if rest else inner
