"""What quantizing costs and is worth: python -m benchmarks.quantize --models smollm2 --rounds 3

camelpress and its peers quantize the same models, calibrated with the same token ids: 4 bits,
symmetric, the same groups; what else they do is each tool's own default. All take turns in random
order, each time as a new process; before it the last output is removed and the disk synced. What
the first round makes of a real model is held against its 16 bits on held-out texts. Prints
Markdown; leaves nothing behind. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks import machine
from benchmarks.measure import Run, run
from benchmarks.quantize import costs, quality
from benchmarks.quantize.models import MODELS, SMALLEST, Model
from benchmarks.quantize.tools import (
    TOOLS,
    Work,
    differs,
    importing,
    missing,
    quantizing,
    title,
)
from benchmarks.tables import Held, table, targets_table

HELD_OUT = 16_384  # tokens of each text
WARM_UP = {"samples": 8, "length": 128, "held_out": 256}


def prepared(
    model: Model, folder: Path, data: Path, *, samples: int, length: int, held_out: int
) -> Work:
    """The model with its texts, in `folder`; of each held-out text there are so many tokens."""
    source = model.folder or folder / "model"
    texts = folder / "texts"
    folder.mkdir()
    if model.sizes is not None:
        hidden, layers = map(str, model.sizes)
        _python("benchmarks.quantize.random_model", hidden, layers, source)
    counts = ["--samples", samples, "--sequence-length", length, "--tokens", held_out]
    _python("benchmarks.quantize.texts", source, data, texts, *counts)
    return Work(source, texts, folder / "turn" / "out", model.group_size, samples, length)


def rounds(
    tools: list[str], work: Work, count: int, *, evaluate: bool
) -> tuple[dict[str, list[Run]], quality.Quality]:
    """Let every tool take its turn, round by round; evaluate what the first round made, if asked.

    Raises:
        SystemExit: a command failed.
    """
    turn = work.out.parent
    commands = {tool: quantizing(tool, work) for tool in tools}
    commands |= {costs.imports(tool): importing(tool, turn) for tool in tools}
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    found: dict[str, dict[str, quality.Figures]] = {}
    chance = random.Random(0)
    for number in range(1, count + 1):
        for name in chance.sample(list(commands), len(commands)):
            shutil.rmtree(turn, ignore_errors=True)
            turn.mkdir()
            os.sync()
            took = run(commands[name])
            runs[name].append(took)
            _say(
                f"round {number} of {count}: {name}: {took.seconds:.1f} s, {took.peak / 1e6:.0f} MB"
            )
            if evaluate and name in tools and number == 1:
                found[name] = _evaluated(work)
    return runs, {tool: found[tool] for tool in tools if evaluate}


def account(model: Model, given: argparse.Namespace, folder: Path) -> str:
    """What one model costs, and what becomes of it, as Markdown."""
    work = prepared(
        model,
        folder,
        given.data,
        samples=given.samples,
        length=given.sequence_length,
        held_out=HELD_OUT,
    )
    runs, figures = rounds(given.tools, work, given.rounds, evaluate=model.sizes is None)
    held: list[Held] = [*costs.targets(given.tools, runs)]
    parts = [
        f"### {model.title}, groups of {model.group_size}",
        costs.costs_table(given.tools, runs),
    ]
    if model.sizes is None:
        parts.append(quality.tables(figures))
        held += quality.targets(figures)
    else:
        parts.append("The weights are random: time and memory mean something, quality nothing.")
    return "\n\n".join([*parts, targets_table(held)])


def preface(given: argparse.Namespace) -> str:
    """Machine, method and tools, as Markdown."""
    lines = [
        *machine.facts(given.folder),
        f"calibration: {given.samples} x {given.sequence_length} tokens of Tulu chat, the same ids "
        "for every tool; 4 bits, symmetric, head and embeddings not quantized",
        f"rounds: {given.rounds}; medians (least - most); ratios are of runs of the same round",
        "intervals: 95 %, by drawing documents",
    ]
    defaults = table(
        ["", "what it does by its own defaults"], [[title(t), differs(t)] for t in given.tools]
    )
    return "\n".join(f"- {line}" for line in lines) + f"\n\n{defaults}"


def main() -> None:
    """Parse the command line and print."""
    parser = argparse.ArgumentParser(description="Set camelpress quantize beside its peers.")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--rounds", type=int, default=3, help="runs of each tool")
    parser.add_argument("--samples", type=int, default=128, help="calibration sequences")
    parser.add_argument("--sequence-length", type=int, default=512, help="tokens")
    parser.add_argument("--data", type=Path, default=os.environ.get("CAMELPRESS_DATA"),
                        help="folder of texts (default: CAMELPRESS_DATA)")  # fmt: skip
    parser.add_argument("--folder", type=Path, default=Path(), help="takes the files meanwhile")
    given = parser.parse_args()
    if given.rounds < 1 or given.data is None or not given.folder.is_dir():
        parser.error("it takes one round at least, --data, and a folder that exists")
    if lacking := missing(given.tools):
        parser.error(f"first run tests/clients/make_env.sh {' '.join(lacking)}")
    print(preface(given), end="\n\n", flush=True)
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="bench-quantize-") as name:
        folder = Path(name).resolve()
        warm = prepared(SMALLEST, folder / "warm-up", given.data, **WARM_UP)
        rounds(given.tools, warm, 1, evaluate=True)
        for choice in given.models:
            print(account(MODELS[choice], given, folder / choice), end="\n\n", flush=True)
            shutil.rmtree(folder / choice)


def _evaluated(work: Work) -> dict[str, quality.Figures]:
    told = work.texts / "quality.json"
    texts = work.texts / "held-out.json"
    _python("benchmarks.quantize.evaluate", work.model, work.out, texts, told)
    found: dict[str, quality.Figures] = json.loads(told.read_text(encoding="utf-8"))
    return found


def _python(module: str, *arguments: object) -> None:
    run([sys.executable, "-m", module, *map(str, arguments)])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
