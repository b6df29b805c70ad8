"""What the runs of recover on one size say: the figures, and the targets."""

from __future__ import annotations

import math

from benchmarks.recover.contenders import IMPORTS, PUBLISHED, RECOVER, SYNCED, UNCHECKED
from benchmarks.shapes import TUNED_ROWS, Sizes
from benchmarks.tables import MB, Runs, Target, above, ratios, spread, table

LARGE = 1.2e9  # parameters from which on the peaks of both algorithms are compared


def targets(sizes: Sizes, runs: Runs) -> list[Target]:
    """What `recover` is held to, as far as the contenders that this needs have run."""
    largest = 4 * max(map(math.prod, sizes.shapes(TUNED_ROWS).values()))  # bytes in fp32
    found = [
        Target(f"seconds: {RECOVER} / {SYNCED}", ratios(runs, RECOVER, SYNCED), 1.5),
        Target(f"seconds: {RECOVER} / {UNCHECKED}", ratios(runs, RECOVER, UNCHECKED), 1.05),
        Target(
            "MB above imports; the largest tensor three times in fp32, and 200",
            above(runs, RECOVER, IMPORTS[RECOVER]),
            3 * largest / MB + 200,
        ),
    ]
    if PUBLISHED in runs:
        slower = ratios(runs, PUBLISHED, RECOVER)
        found.append(Target(f"seconds: {PUBLISHED} / {RECOVER}", slower, 5, at_most=False))
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
            spread([run.seconds for run in own]),
            spread(ratios(runs, name, SYNCED)),
            spread([run.peak / MB for run in own], digits=0),
            spread(above(runs, name, IMPORTS[name]), digits=0) if name in IMPORTS else "",
        ]
        for name, own in runs.items()
    )
    return table(["", "seconds", f"over {SYNCED}", "peak, MB", "above imports, MB"], rows)
