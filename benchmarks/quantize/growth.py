"""Measures how quantizing grows with layers and with samples:

    python -m benchmarks.quantize.growth --layers 4 8 16 32 --samples 32 64 128 256

LLaMA-shaped models of random weights are quantized, some with more layers and some with more
calibration sequences, in random order, each as a new process; the peak of each is held against
the forecast that it gave. Prints Markdown; leaves nothing behind. Linux only.

A single block as wide as that of LLaMA 65B:

    python -m benchmarks.quantize.growth --hidden 8192 --layers 1 --samples 8 \
        --sequence-length 2048 --alone
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

from benchmarks import machine
from benchmarks.measure import Run, run
from benchmarks.quantize.tools import OURS, Work, importing, quantizing
from benchmarks.shapes import Sizes
from benchmarks.tables import MB, Target, spread, table, targets_table

TEXT = Path(__file__).parents[2] / "demo" / "text" / "moby-dick.txt.xz"
GROUP_SIZE = 128
LAYERS, SAMPLES = 8, 32  # of the runs in which the other one changes
IMPORTS = "imports"
REPORT = "quantize-report.json"

# fmt: off
PROPORTIONAL = 1.1   # time of the last step over its share of layers or samples, at most
FLAT = 1.05          # peak with the most layers, or samples, over that with the fewest, at most
FORECAST = 1.2       # the larger of peak and forecast over the smaller, at most
# fmt: on


class Size(NamedTuple):
    """One model with its calibration."""

    layers: int
    samples: int


Runs = Mapping[Size | str, Sequence[Run]]
Forecasts = Mapping[Size, int]  # bytes


def rounds(
    sizes: Sequence[Size], folder: Path, given: argparse.Namespace
) -> tuple[dict[Size | str, list[Run]], dict[Size, int]]:
    """Let every size take its turn, round by round; what each cost, and the peak it forecast.

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
    forecasts: dict[Size, int] = {}
    chance = random.Random(0)
    for number in range(1, given.rounds + 1):
        for name in chance.sample(list(commands), len(commands)):
            print(f"round {number} of {given.rounds}: {name}", file=sys.stderr)
            shutil.rmtree(out.parent, ignore_errors=True)
            out.parent.mkdir()
            os.sync()
            runs[name].append(run(commands[name]))
            if isinstance(name, Size):
                report = json.loads((out / REPORT).read_text(encoding="utf-8"))
                forecasts[name] = report["cost"]["expected_peak_bytes"]
    return runs, forecasts


def figures_table(runs: Runs, forecasts: Forecasts) -> str:
    """Time and memory of every size."""
    rows = [
        [
            f"{size.layers} layers, {size.samples} samples" if isinstance(size, Size) else size,
            spread([one.seconds for one in own], digits=1),
            spread([one.cpu for one in own], digits=1),
            spread([one.peak / MB for one in own], digits=0),
            spread(_above(runs, size), digits=0),
            f"{forecasts[size] / MB:.0f}" if isinstance(size, Size) else "",
        ]
        for size, own in runs.items()
    ]
    return table(
        ["", "seconds", "CPU seconds", "peak, MB", "above imports, MB", "forecast, MB"], rows
    )


def targets(runs: Runs, forecasts: Forecasts) -> list[Target]:
    """Time is proportional to layers and samples; memory is flat, and known before."""
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
        found += [
            Target(
                "CPU seconds a sample: most / fewest", _share(runs, long, "samples"), PROPORTIONAL
            ),
            Target("peak: most samples / fewest", _peaks(runs, long), FLAT),
        ]
    off = max(
        max(one.peak, forecasts[size]) / min(one.peak, forecasts[size])
        for size in sizes
        for one in runs[size]
    )
    found.append(Target("peak and forecast: larger / smaller, at worst", [off], FORECAST))
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
    parser.add_argument("--alone", action="store_true",
                        help="only each number of layers with each of samples")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3, help="runs of each size")
    parser.add_argument("--folder", type=Path, default=Path(), help="takes the files meanwhile")
    given = parser.parse_args()
    if given.rounds < 1 or not given.folder.is_dir():
        parser.error("it takes one round at least, and a folder that exists")
    if given.alone:
        sizes = sorted(Size(*each) for each in product(given.layers, given.samples))
    else:
        sizes = sorted(
            {Size(layers, SAMPLES) for layers in given.layers}
            | {Size(LAYERS, samples) for samples in given.samples}
        )
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="bench-growth-") as name:
        runs, forecasts = rounds(sizes, Path(name).resolve(), given)
    facts = [
        *machine.facts(given.folder),
        f"width {given.hidden}, ffn {Sizes(given.hidden, 1).ffn}, groups of {GROUP_SIZE}, samples "
        f"of {given.sequence_length} tokens",
        f"rounds: {given.rounds}; medians (least - most)",
    ]
    held = targets(runs, forecasts)
    print("\n".join(f"- {line}" for line in facts), end="\n\n")
    print(figures_table(runs, forecasts), targets_table(held), sep="\n\n")


if __name__ == "__main__":
    main()
