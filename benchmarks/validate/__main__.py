"""What validating costs: python -m benchmarks.validate --tokens 16384 --rounds 3

camelpress holds a 4-bit model against its reference in one pass; lm-evaluation-harness scores one
and then the other. Both read the same articles in the same windows, in fp32, and must say the same
of them. All take turns in random order, each time as a new process, beside a process that only
imports the same modules and one that only multiplies matrices. Then models of random weights of two
depths, and texts of two lengths, show whether memory grows. Prints Markdown; leaves nothing behind.
Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
from math import isclose
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from benchmarks import machine
from benchmarks.measure import Run, run
from benchmarks.tables import MB, Target, above, spread, table, targets_table
from benchmarks.validate.contenders import (
    IMPORTS,
    OURS,
    PEER,
    PYTHON,
    ROOT,
    Folders,
    commands,
)

MODEL = ROOT / ".models" / "SmolLM2-135M-Instruct"
ARTICLES = "text/wiki.utf8"
OPEN = "{perplexity_ratio: {max: 1000.0}, kl_mean: null, top1_agreement: null}\n"
FASTER, LIMIT_SHARE, SPARE = 2.0, 0.6, 300.0  # MB beside two blocks of each model and logits
FLAT = 1.05
EQUAL = 1e-6  # of perplexities, relative
LOGITS = 2**24 * 4  # bytes in memory at once, per model, as core.predictions has it
DEPTHS, WIDTH = (4, 32), 512
Runs = dict[str, list[Run]]


def prepared(given: argparse.Namespace, folder: Path) -> tuple[Folders, dict[str, float]]:
    """The candidate in both its forms, the text, and what is to be computed."""
    folders = Folders(given.model, *(folder / name for name in ("4bit", "dense", "text", "turn")))
    options = ["--method", "rtn", "--group-size", "64"]
    _camelpress("quantize", folders.reference, folders.candidate, *options)
    _camelpress("export", folders.candidate, folders.dense, "--to", "dense")
    counting = ["--tokens", given.tokens, "--window", given.window]
    source = given.data / ARTICLES
    _python("benchmarks.validate.prepare", folders.reference, source, folders.text, *counting)
    (folders.text / "open.yaml").write_text(OPEN, encoding="utf-8")
    counts: dict[str, float] = json.loads((folders.text / "counts.json").read_text("utf-8"))
    return folders, counts


def rounds(folders: Folders, given: argparse.Namespace) -> tuple[Runs, list[float]]:
    """Let everyone take turns, round by round; also operations a second, of each round.

    Raises:
        SystemExit: a command failed, or the two do not say the same.
    """
    everyone = commands(folders, given.window, given.batch)
    runs: Runs = {name: [] for name in everyone}
    rates = []
    chance = random.Random(0)
    for number in range(1, given.rounds + 1):
        shutil.rmtree(folders.turn, ignore_errors=True)
        folders.turn.mkdir()
        for name in chance.sample(list(everyone), len(everyone)):
            os.sync()
            runs[name].append(run(everyone[name]))
            _say(f"round {number} of {given.rounds}: {name}: {runs[name][-1].seconds:.1f} s")
        require_the_same(folders.turn)
        rates.append(json.loads((folders.turn / "gemm").read_text("utf-8")))
    return runs, rates


def require_the_same(turn: Path) -> None:
    """See that both tools give both models the same perplexities.

    Raises:
        SystemExit: they do not.
    """
    facts = json.loads((turn / "ours" / "report.json").read_text("utf-8"))["facts"]
    for model in PEER:
        told: dict[str, float] = json.loads((turn / model).read_text("utf-8"))
        for metric, theirs in told.items():
            ours = facts[f"{model}_{metric}"]
            if not isclose(ours, theirs, rel_tol=EQUAL):
                raise SystemExit(f"{metric} of the {model}: {ours} here, {theirs} by lm-eval")
        _say(f"{model}: {told}")


def costs_table(runs: Runs, counts: dict[str, float]) -> str:
    """Time and memory of everyone."""
    peer = "lm-eval: both, one after the other"
    both = [
        Run(one.seconds + other.seconds, max(one.peak, other.peak), one.cpu + other.cpu)
        for one, other in zip(*(runs[name] for name in PEER.values()), strict=True)
    ]
    rows = []
    for name, own in [*runs.items(), (peer, both)]:
        scores = name in (OURS, peer)
        rows.append(
            [
                name,
                spread([one.seconds for one in own], digits=1),
                spread([counts["tokens"] / one.seconds for one in own], 0) if scores else "",
                spread([one.cpu for one in own], digits=1),
                spread([one.peak / MB for one in own], digits=0),
                spread(above(runs, name, IMPORTS[name]), digits=0) if name in IMPORTS else "",
            ]
        )
    header = ["", "seconds", "tokens a second", "CPU seconds", "peak, MB", "above imports, MB"]
    return table(header, rows)


def targets(
    runs: Runs, rates: list[float], counts: dict[str, float], blocks: float
) -> list[Target]:
    """Ours against lm-eval, the processor, and what memory is allowed.

    Args:
        runs: of everyone.
        rates: operations a second, of each round.
        counts: of one model.
        blocks: MB of two blocks of both models in fp32.
    """
    theirs = zip(*(runs[name] for name in PEER.values()), strict=True)
    faster = [sum(one.seconds for one in both) for both in theirs]
    ours = [one.seconds for one in runs[OURS]]
    limits = [2 * counts["flops"] / rate for rate in rates]
    bare = [
        one.seconds - beside.seconds
        for one, beside in zip(runs[OURS], runs[IMPORTS[OURS]], strict=True)
    ]
    allowed = blocks + 2 * LOGITS / MB + SPARE
    return [
        Target("tokens a second: camelpress / lm-eval", _over(faster, ours), FASTER, at_most=False),
        Target("share of the fp32 limit", _over(limits, ours), LIMIT_SHARE, at_most=False),
        Target("the same without imports", _over(limits, bare), LIMIT_SHARE, at_most=False),
        Target(
            "MB above imports; two blocks of each model, logits, and 300",
            above(runs, OURS, IMPORTS[OURS]),
            allowed,
        ),
    ]


def growth(given: argparse.Namespace, folder: Path) -> tuple[str, list[Target]]:
    """Peaks with few and many layers, and with a short and a long text."""
    source, long = given.data / ARTICLES, folder / "long.txt"
    content = source.read_text(encoding="utf-8").encode()[: given.growth]
    long.write_bytes(content.decode(errors="ignore").encode())
    short = folder / "short.txt"
    short.write_bytes(content[: len(content) // 8].decode(errors="ignore").encode())
    peaks: dict[str, float] = {}
    for layers in DEPTHS:
        model = folder / f"layers-{layers}"
        _python("benchmarks.quantize.random_model", WIDTH, layers, model)
        wide = _widened(model)
        for text in (short, long) if layers == min(DEPTHS) else (short,):
            out = folder / f"{layers}-{text.stem}"
            options = ["--text", text, "--sequence-length", given.window, "--out", out]
            options += ["--device", "cpu", "--gate", folder / "text" / "open.yaml"]
            command = [sys.executable, "-m", "camelpress", "validate", model, wide, *options]
            took = run([str(word) for word in command])
            tokens = json.loads((out / "report.json").read_text("utf-8"))["facts"]["tokens"]
            peaks[f"{layers} layers, {tokens:,} tokens"] = took.peak / MB
    few, longer, many = peaks.values()
    rows = [[name, f"{peak:.0f}"] for name, peak in peaks.items()]
    return table([f"random weights, width {WIDTH}", "peak, MB"], rows), [
        Target(f"peak: {max(DEPTHS)} layers / {min(DEPTHS)}", [many / few], FLAT),
        Target("peak: eight times the text / once", [longer / few], FLAT),
    ]


def _widened(model: Path) -> Path:
    """Writes the same weights in fp32, since validate refuses to hold a model against itself."""
    wide = Path(f"{model}-fp32")
    shutil.copytree(model, wide)
    tensors = load_file(model / "model.safetensors")
    save_file(
        {name: tensor.float() for name, tensor in tensors.items()},
        wide / "model.safetensors",
        metadata={"format": "pt"},
    )
    return wide


def block_megabytes(model: Path) -> float:
    """Two blocks of two models in fp32."""
    config: dict[str, Any] = json.loads((model / "config.json").read_text("utf-8"))
    hidden, ffn, heads = (
        config[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads")
    )
    shared = config.get("num_key_value_heads", heads)
    weights = hidden * (2 * hidden + 2 * hidden * shared // heads + 3 * ffn + 2)
    return 2 * 2 * 4 * weights / MB


def main() -> None:
    """Parse the command line and print."""
    parser = argparse.ArgumentParser(description="Set camelpress validate beside lm-eval.")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--tokens", type=int, default=16_384, help="of the text, about")
    parser.add_argument("--window", type=int, default=512, help="tokens")
    parser.add_argument("--batch", type=int, default=1, help="lm-eval's windows side by side")
    parser.add_argument("--rounds", type=int, default=3, help="runs of everyone")
    parser.add_argument("--growth", type=int, default=400_000,
                        help="bytes of the long text for memory; 0: leave that out")  # fmt: skip
    parser.add_argument("--data", type=Path, default=os.environ.get("CAMELPRESS_DATA"),
                        help="folder of texts (default: CAMELPRESS_DATA)")  # fmt: skip
    parser.add_argument("--folder", type=Path, default=Path(), help="takes the files meanwhile")
    given = parser.parse_args()
    if given.rounds < 1 or given.data is None or not given.folder.is_dir():
        parser.error("it takes one round at least, --data, and a folder that exists")
    if not PYTHON.exists():
        parser.error("first run tests/clients/make_env.sh lmeval")
    given.model, given.data = given.model.resolve(), Path(given.data).resolve()
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="bench-validate-") as name:
        folder = Path(name).resolve()
        folders, counts = prepared(given, folder)
        runs, rates = rounds(folders, given)
        held = targets(runs, rates, counts, block_megabytes(given.model))
        grown, more = growth(given, folder) if given.growth else ("", [])
    facts = [
        *machine.facts(given.folder),
        f"{given.model.name}, fp32; {counts['tokens']:,} tokens of articles in windows of "
        f"{given.window}, by lm-eval {given.batch} side by side",
        f"{counts['flops'] / 1e12:.2f} TFLOP a model; products of 2,048 x 2,048 at "
        f"{spread([rate / 1e9 for rate in rates], 0)} GFLOP/s",
        f"rounds: {given.rounds}; medians (least - most); ratios are of runs of the same round",
    ]
    print("\n".join(f"- {line}" for line in facts), end="\n\n")
    print(costs_table(runs, counts), grown, targets_table([*held, *more]), sep="\n\n")


def _over(above: list[float], below: list[float]) -> list[float]:
    return [high / low for high, low in zip(above, below, strict=True)]


def _camelpress(*arguments: object) -> None:
    _python("camelpress", *arguments)


def _python(module: str, *arguments: object) -> None:
    run([sys.executable, "-m", module, *map(str, arguments)])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
