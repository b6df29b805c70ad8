"""Figures of several runs, and targets with their verdicts, as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from benchmarks.measure import Run
from camelpress.reporting.tables.markdown_table import LEFT, RIGHT, markdown_table

Runs = Mapping[str, Sequence[Run]]  # by contender, in the order of the rounds

MB = 1e6


class Held(Protocol):
    """A target, as a table tells it."""

    @property
    def name(self) -> str:
        """What is measured."""

    @property
    def measured(self) -> str:
        """The figure."""

    @property
    def asked(self) -> str:
        """The bound."""

    @property
    def met(self) -> bool:
        """Whether the figure keeps it."""


class Target(NamedTuple):
    """A figure of every round, and the bound for their median."""

    name: str
    values: Sequence[float]
    bound: float
    at_most: bool = True

    @property
    def measured(self) -> str:
        """Median and extremes."""
        return spread(self.values)

    @property
    def asked(self) -> str:
        """The bound, and which way it holds."""
        return f"{'at most' if self.at_most else 'at least'} {self.bound:,.4g}"

    @property
    def met(self) -> bool:
        """Whether the median keeps the bound."""
        middle = statistics.median(self.values)
        return middle <= self.bound if self.at_most else middle >= self.bound


def ratios(runs: Runs, name: str, other: str) -> list[float]:
    """Seconds of one contender over those of another in the same round."""
    pairs = zip(runs[name], runs[other], strict=True)
    return [run.seconds / beside.seconds for run, beside in pairs]


def above(runs: Runs, name: str, imports: str) -> list[float]:
    """Peak in MB, less that of a process of the same round which only imports."""
    pairs = zip(runs[name], runs[imports], strict=True)
    return [(run.peak - beside.peak) / MB for run, beside in pairs]


def targets_table(held: Iterable[Held]) -> str:
    """Targets and whether they are met."""
    rows = (
        [target.name, target.measured, target.asked, "met" if target.met else "not met"]
        for target in held
    )
    return table(["target", "measured", "bound", "verdict"], rows)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median, and the extremes where there are several values."""
    middle, low, high = (
        f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values))
    )
    return f"{middle} ({low} - {high})" if len(values) > 1 else middle


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells below a header, all columns but the first on the right."""
    return markdown_table(header, rows, [LEFT, *[RIGHT] * (len(header) - 1)])
