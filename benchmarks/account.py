"""What the runs of one size say, as Markdown: the figures, and the targets with their verdicts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from benchmarks.contenders import IMPORTS, PUBLISHED, RECOVER, SYNCED, UNCHECKED
from benchmarks.measure import Run
from benchmarks.shapes import TUNED_ROWS, Sizes

Runs = Mapping[str, Sequence[Run]]  # by contender, in the order of the rounds

MB = 1e6
LARGE = 1.2e9  # parameters from which on the peaks of both algorithms are compared


class Target(NamedTuple):
    """A figure of every round, and the bound for their median."""

    name: str
    values: Sequence[float]
    bound: float
    at_most: bool = True

    @property
    def met(self) -> bool:
        """Whether the median keeps the bound."""
        middle = statistics.median(self.values)
        return middle <= self.bound if self.at_most else middle >= self.bound


def targets(sizes: Sizes, runs: Runs) -> list[Target]:
    """What `recover` is held to, as far as the contenders that this needs have run."""
    largest = 4 * max(map(math.prod, sizes.shapes(TUNED_ROWS).values()))  # bytes in fp32
    found = [
        Target(f"seconds: {RECOVER} / {SYNCED}", _seconds(runs, RECOVER, SYNCED), 1.5),
        Target(f"seconds: {RECOVER} / {UNCHECKED}", _seconds(runs, RECOVER, UNCHECKED), 1.05),
        Target(
            "MB above imports; the largest tensor three times in fp32, and 200",
            _above_imports(runs, RECOVER),
            3 * largest / MB + 200,
        ),
    ]
    if PUBLISHED in runs:
        ratios = _seconds(runs, PUBLISHED, RECOVER)
        found.append(Target(f"seconds: {PUBLISHED} / {RECOVER}", ratios, 5, at_most=False))
    if PUBLISHED in runs and sizes.parameters >= LARGE:
        both = zip(runs[PUBLISHED], runs[RECOVER], strict=True)
        peaks = [theirs.peak / ours.peak for theirs, ours in both]
        found.append(Target(f"peak: {PUBLISHED} / {RECOVER}", peaks, 10, at_most=False))
    return found


def figures_table(runs: Runs) -> str:
    """Time and memory of every contender."""
    rows = (
        [
            name,
            _spread([run.seconds for run in own]),
            _spread(_seconds(runs, name, SYNCED)),
            _spread([run.peak / MB for run in own], digits=0),
            _spread(_above_imports(runs, name), digits=0) if name in IMPORTS else "",
        ]
        for name, own in runs.items()
    )
    return _table(["", "seconds", f"over {SYNCED}", "peak, MB", "above imports, MB"], rows)


def targets_table(held: Iterable[Target]) -> str:
    """Targets and whether they are met."""
    rows = (
        [
            target.name,
            _spread(target.values),
            f"{'at most' if target.at_most else 'at least'} {target.bound:,.4g}",
            "met" if target.met else "not met",
        ]
        for target in held
    )
    return _table(["target", "measured", "bound", "verdict"], rows)


def _seconds(runs: Runs, name: str, other: str) -> list[float]:
    pairs = zip(runs[name], runs[other], strict=True)
    return [run.seconds / beside.seconds for run, beside in pairs]


def _above_imports(runs: Runs, name: str) -> list[float]:
    pairs = zip(runs[name], runs[IMPORTS[name]], strict=True)
    return [(run.peak - imports.peak) / MB for run, imports in pairs]


def _spread(values: Sequence[float], digits: int = 2) -> str:
    """The median, and the extremes where there are several values."""
    middle, low, high = (
        f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values))
    )
    return f"{middle} ({low} - {high})" if len(values) > 1 else middle


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    ruler = "|".join(["", "---", *["---:"] * (len(header) - 1), ""])
    first, *others = (f"| {' | '.join(cells)} |" for cells in [header, *rows])
    return "\n".join([first, ruler, *others])
