"""How quantizing grows: python -m benchmarks.growth --layers 4 8 16 32 --samples 32 64 128 256

LLaMA-shaped models of random weights are quantized, some with more layers and some with more
calibration sequences, in random order, each as a new process. Prints Markdown; leaves nothing
behind. Linux only.
"""

from __future__ import annotations

import argparse
import lzma
import os
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import machine
from benchmarks.measure import Run, run
from benchmarks.quantize.tools import OURS, Work, importing, quantizing
from benchmarks.shapes import Sizes
from benchmarks.tables import MB, Target, spread, table, targets_table

TEXT = Path(__file__).parents[1] / "demo" / "text" / "moby-dick.txt.xz"
GROUP_SIZE = 128
LAYERS, SAMPLES = 8, 32  # of the runs in which the other one changes
IMPORTS = "imports"
FP32 = 4  # bytes

# fmt: off
PROPORTIONAL = 1.1   # time of the last step over its share of layers or samples, at most
FLAT = 1.05          # peak with the most layers over that with the fewest, at most
STATES = 1.1         # bytes that a token adds to the peak, over its hidden state in fp32, at most
# fmt: on


class Size(NamedTuple):
    """One model with its calibration."""

    layers: int
    samples: int


Runs = Mapping[Size | str, Sequence[Run]]


def rounds(
    sizes: Sequence[Size], folder: Path, given: argparse.Namespace
) -> dict[Size | str, list[Run]]:
    """Let every size take its turn, round by round.

    Raises:
        SystemExit: a command failed.
    """
    texts = folder / "texts"
    texts.mkdir()
    (texts / "calibration.txt").write_bytes(lzma.decompress(TEXT.read_bytes()))
    out = folder / "turn" / "out"
    commands: dict[Size | str, list[str]] = {IMPORTS: importing(OURS, out.parent)}
    for size in sizes:
        model = folder / f"model-{size.layers}"
        if not model.exists():
            make = ["-m", "benchmarks.quantize.random_model", str(given.hidden), str(size.layers)]
            run([sys.executable, *make, str(model)])
        work = Work(model, texts, out, GROUP_SIZE, size.samples, given.sequence_length)
        commands[size] = quantizing(OURS, work)
    runs: dict[Size | str, list[Run]] = {name: [] for name in commands}
    chance = random.Random(0)
    for number in range(1, given.rounds + 1):
        for name in chance.sample(list(commands), len(commands)):
            print(f"round {number} of {given.rounds}: {name}", file=sys.stderr)
            shutil.rmtree(out.parent, ignore_errors=True)
            out.parent.mkdir()
            os.sync()
            runs[name].append(run(commands[name]))
    return runs


def figures_table(runs: Runs) -> str:
    """Time and memory of every size."""
    rows = [
        [
            f"{size.layers} layers, {size.samples} samples" if isinstance(size, Size) else size,
            spread([one.seconds for one in own], digits=1),
            spread([one.cpu for one in own], digits=1),
            spread([one.peak / MB for one in own], digits=0),
            spread(_above(runs, size), digits=0),
        ]
        for size, own in runs.items()
    ]
    return table(["", "seconds", "CPU seconds", "peak, MB", "above imports, MB"], rows)


def targets(runs: Runs, hidden: int, length: int) -> list[Target]:
    """Time is proportional to layers and samples; memory is flat, but for hidden states."""
    sizes = [size for size in runs if isinstance(size, Size)]
    deep = sorted(size for size in sizes if size.samples == SAMPLES)
    long = sorted(size for size in sizes if size.layers == LAYERS)
    found = []
    if len(deep) > 1:
        found += [
            Target(
                "CPU seconds a layer: most / fewest", _share(runs, deep, "layers"), PROPORTIONAL
            ),
            Target("peak: most layers / fewest", _peaks(runs, deep), FLAT),
        ]
    if len(long) > 1:
        least, most = long[0], long[-1]
        states = (most.samples - least.samples) * length * hidden * FP32
        more = zip(runs[most], runs[least], strict=True)
        added = [(one.peak - other.peak) / states for one, other in more]
        found += [
            Target(
                "CPU seconds a sample: most / fewest", _share(runs, long, "samples"), PROPORTIONAL
            ),
            Target("peak a further token / its hidden state in fp32", added, STATES),
        ]
    return found


def _share(runs: Runs, sizes: Sequence[Size], counted: str) -> list[float]:
    """CPU time without imports for each layer or sample: that of the largest over the smallest."""
    least, most = (
        [
            (one.cpu - beside.cpu) / getattr(size, counted)
            for one, beside in zip(runs[size], runs[IMPORTS], strict=True)
        ]
        for size in (sizes[0], sizes[-1])
    )
    return [high / low for high, low in zip(most, least, strict=True)]


def _peaks(runs: Runs, sizes: Sequence[Size]) -> list[float]:
    return [
        most.peak / least.peak for most, least in zip(runs[sizes[-1]], runs[sizes[0]], strict=True)
    ]


def _above(runs: Runs, name: Size | str) -> list[float]:
    beside = statistics.median(one.peak for one in runs[IMPORTS])
    return [(one.peak - beside) / MB for one in runs[name]]


def main() -> None:
    """Parse the command line and print."""
    parser = argparse.ArgumentParser(description="Measure how camelpress quantize grows.")
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--samples", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--hidden", type=int, default=512, help="width, a multiple of 128")
    parser.add_argument("--sequence-length", type=int, default=512, help="tokens")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each size")
    parser.add_argument("--folder", type=Path, default=Path(), help="takes the files meanwhile")
    given = parser.parse_args()
    if given.rounds < 1 or not given.folder.is_dir():
        parser.error("it takes one round at least, and a folder that exists")
    sizes = sorted(
        {Size(layers, SAMPLES) for layers in given.layers}
        | {Size(LAYERS, samples) for samples in given.samples}
    )
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="bench-growth-") as name:
        runs = rounds(sizes, Path(name).resolve(), given)
    facts = [
        *machine.facts(given.folder),
        f"width {given.hidden}, ffn {Sizes(given.hidden, 1).ffn}, groups of {GROUP_SIZE}, samples "
        f"of {given.sequence_length} tokens",
        f"rounds: {given.rounds}; medians (least - most)",
    ]
    held = targets(runs, given.hidden, given.sequence_length)
    print("\n".join(f"- {line}" for line in facts), end="\n\n")
    print(figures_table(runs), targets_table(held), sep="\n\n")


if __name__ == "__main__":
    main()
