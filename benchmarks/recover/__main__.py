"""What `camelpress recover` costs: python -m benchmarks.recover --sizes 0.1 1.3 --rounds 5

For each size a raw model and its diff are made. On them `recover` runs against the published
algorithm, where memory allows that, and against mere reading and writing of as many bytes, which
nothing can beat. All take turns in random order, each time as a new process; before it the last
output is removed, the disk synced and the input read, after it the output is compared with the
tuned model. Prints Markdown; leaves nothing behind. Linux only.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks import machine
from benchmarks.measure import Run, run
from benchmarks.recover.contenders import PUBLISHED, contenders
from benchmarks.recover.costs import figures_table, targets
from benchmarks.shapes import near
from benchmarks.tables import targets_table

# fmt: off
INPUT = 2 + 4             # bytes a parameter: fp16 and fp32
OUTPUT = 2                # of ours, and of the floor
PUBLISHED_OUTPUT = 4
PUBLISHED_MEMORY = 8.6    # two fp32 models, and some
SPARE = 2_000_000_000     # bytes of memory, or of the disk, that are left to others
# fmt: on


def rounds(billions: float, count: int, work: Path, *, published: bool) -> dict[str, list[Run]]:
    """Make a pair in `work` and let every contender take its turn, round by round.

    What a turn leaves, the next one does not find: neither output nor what was begun.

    Raises:
        SystemExit: a command failed, or what it recovered is not the tuned model.
    """
    run([sys.executable, "-m", "benchmarks.pair", str(billions), str(work)])
    out = work / "turn" / "out"
    everyone = contenders(work, out, published=published)
    runs: dict[str, list[Run]] = {contender.name: [] for contender in everyone}
    inputs = [str(path) for name in ("base", "diff") for path in (work / name).iterdir()]
    agree = [sys.executable, "-m", "benchmarks.recover.output_check"]
    chance = random.Random(0)
    for number in range(1, count + 1):
        for contender in chance.sample(everyone, len(everyone)):
            print(f"round {number} of {count}: {contender.name}", file=sys.stderr)
            shutil.rmtree(out.parent, ignore_errors=True)
            out.parent.mkdir()
            os.sync()
            run(["cat", *inputs])
            runs[contender.name].append(run(contender.command))
            if contender.recovers:
                run([*agree, str(billions), str(out), str(number)])
    return runs


def account(billions: float, count: int, folder: Path) -> str:
    """What one size costs, as Markdown.

    Raises:
        SystemExit: the disk has too little space, or as `rounds`.
    """
    sizes = near(billions)
    size = sizes.parameters
    memory, needed = machine.available_memory(), int(PUBLISHED_MEMORY * size) + SPARE
    published = needed <= memory
    space = size * (INPUT + (PUBLISHED_OUTPUT if published else OUTPUT)) + SPARE
    free = shutil.disk_usage(folder).free
    if space > free:
        raise SystemExit(f"{folder} has {_gb(free)} free, {billions:g} billion needs {_gb(space)}")
    with tempfile.TemporaryDirectory(dir=folder, prefix="bench-recover-") as work:
        runs = rounds(billions, count, Path(work), published=published)
    parts = [
        f"### {size / 1e9:.3g} billion parameters",
        f"Width {sizes.hidden}, {sizes.layers} layers. Input {_gb(INPUT * size)}, output "
        f"{_gb(OUTPUT * size)}, memory available before {_gb(memory)}.",
        figures_table(runs),
        targets_table(targets(sizes, runs)),
    ]
    if not published:
        parts[3:3] = [f"{PUBLISHED}: not run, it needs {_gb(needed)} of memory."]
    return "\n\n".join(parts)


def preface(folder: Path, count: int) -> str:
    """Machine and method, as Markdown."""
    lines = [
        *machine.facts(folder),
        f"rounds: {count}; medians (least - most); ratios are of runs of the same round",
        f"peak of a process that does nothing: {run(['true']).peak / 1e6:.0f} MB",
    ]
    return "\n".join(f"- {line}" for line in lines)


def main() -> None:
    """Parse the command line and print."""
    parser = argparse.ArgumentParser(description="Measure camelpress recover.")
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.1, 0.6, 1.3, 3.0],
                        help="billions of parameters")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5, help="runs of each contender")
    parser.add_argument("--folder", type=Path, default=Path(), help="takes the files meanwhile")
    given = parser.parse_args()
    if given.rounds < 1 or not given.folder.is_dir():
        parser.error("it takes one round at least, and a folder that exists")
    print(preface(given.folder, given.rounds), end="\n\n", flush=True)
    for billions in given.sizes:
        print(account(billions, given.rounds, given.folder), end="\n\n", flush=True)


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


if __name__ == "__main__":
    main()
