"""What quantizing took, as Markdown: time and memory of every tool, and the targets for them."""

from __future__ import annotations

import statistics

from benchmarks.quantize.tools import OURS, title
from benchmarks.tables import MB, Runs, Target, above, ratios, spread, table

FASTEST = 1 / 5  # our seconds over those of the fastest peer, at most
LEANEST = 1 / 2  # our peak over that of the leanest peer, imports left out


def imports(tool: str) -> str:
    """The contender that only imports what a tool imports."""
    return f"imports of {tool}"


def targets(tools: list[str], runs: Runs) -> list[Target]:
    """Ours against the fastest and the leanest of the peers."""
    peers = [tool for tool in tools if tool != OURS]
    if OURS not in tools or not peers:
        return []
    seconds = {tool: statistics.median(run.seconds for run in runs[tool]) for tool in peers}
    memory = {tool: above(runs, tool, imports(tool)) for tool in tools}
    fastest = min(peers, key=lambda tool: seconds[tool])
    leanest = min(peers, key=lambda tool: statistics.median(memory[tool]))
    shares = [ours / theirs for ours, theirs in zip(memory[OURS], memory[leanest], strict=True)]
    return [
        Target(f"seconds: {OURS} / {title(fastest)}", ratios(runs, OURS, fastest), FASTEST),
        Target(f"peak above imports: {OURS} / {title(leanest)}", shares, LEANEST),
    ]


def costs_table(tools: list[str], runs: Runs) -> str:
    """Time and memory of every tool."""
    rows = (
        [
            title(tool),
            spread([run.seconds for run in runs[tool]], digits=1),
            spread(ratios(runs, tool, OURS)) if OURS in tools else "",
            spread([run.cpu for run in runs[tool]], digits=1),
            spread([run.peak / MB for run in runs[tool]], digits=0),
            spread(above(runs, tool, imports(tool)), digits=0),
            spread([run.seconds for run in runs[imports(tool)]], digits=1),
        ]
        for tool in tools
    )
    header = ["", "seconds", f"over {OURS}", "CPU seconds", "peak, MB", "above imports, MB"]
    return table([*header, "imports, seconds"], rows)
