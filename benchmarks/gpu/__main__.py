"""Measures one GPU, a part at a time: python -m benchmarks.gpu [--part NAME] [--limit SECONDS]

Prints JSON lines. Each part runs in its own process, so none takes another down; a part that no
longer fits into the limit is skipped. Exit code 1 if a part failed or found a difference. With
`--device cpu` every part runs at tiny sizes or says that it needs a GPU: a dry run.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.gpu import block_parts, ceilings, solver_parts, stage_parts
from benchmarks.gpu.session import Session

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 470.0
DIFFERENCE = 4  # exit code of a part that found a difference
ERROR_LINES = 3  # last lines of stderr of a part that failed


class Part(NamedTuple):
    """One part, and the seconds that must be left for it to start; an estimate, not a measure."""

    run: Callable[[Session], None]
    seconds: float


# fmt: off
PARTS = {  # the most valuable first
    "facts":      Part(ceilings.machine_facts,   10),
    "ceilings":   Part(ceilings.ceilings,        20),
    "tests":      Part(stage_parts.gpu_tests,    60),
    "kernels":    Part(solver_parts.kernels,     20),
    "block-65b":  Part(block_parts.block_65b,   120),
    "block-7b":   Part(block_parts.block_7b,     60),
    "numerics":   Part(solver_parts.numerics,    15),
    "demo":       Part(stage_parts.demo,         60),
    "validation": Part(stage_parts.validation,   40),
    "decoding":   Part(stage_parts.decoding,     30),
    "solver":     Part(solver_parts.solver,      60),
    "peers":      Part(stage_parts.peers,        60),
    "launches":   Part(block_parts.launches,     60),
}
# fmt: on


def run_part(name: str, options: list[str], seconds: float) -> Iterator[dict[str, Any]]:
    """Runs one part in its own process, and yields its lines and its failure."""
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gpu", "--part", name, *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, errors = process.communicate(timeout=seconds)
            failure = " | ".join(errors.strip().splitlines()[-ERROR_LINES:])
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, _ = process.communicate()
            failure = f"stopped after {seconds:.0f} s, at the limit"
    for line in out.splitlines():
        if line.startswith("{"):
            yield json.loads(line)
    if process.returncode not in (0, DIFFERENCE):
        yield {"part": name, "failed": failure}


def run_parts(names: Sequence[str], options: list[str], limit: float) -> bool:
    """Runs parts one by one and prints their lines; returns true if all of them succeeded."""
    start, succeeded = time.monotonic(), True
    for name in names:
        left = limit - (time.monotonic() - start)
        if left < PARTS[name].seconds:
            reason = f"{left:.0f} s are left, and it may take {PARTS[name].seconds:.0f} s"
            print(json.dumps({"part": name, "skipped": reason}), flush=True)
            continue
        begin = time.monotonic()
        for line in run_part(name, options, left):
            print(json.dumps(line), flush=True)
            succeeded &= "failed" not in line and line.get("ok") is not False
        print(json.dumps({"part": name, "seconds": time.monotonic() - begin}), flush=True)
    return succeeded


def main() -> None:
    """Parses the command line and runs the parts."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--part", choices=PARTS, help="run this part alone")
    parser.add_argument("--limit", type=float, default=LIMIT_SECONDS, help="seconds of all parts")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for a dry run")
    parser.add_argument("--folder", type=Path, help="place of models and outputs, 10 GB; a part "
                        "run alone keeps its models there")  # fmt: skip
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; --device cpu is a dry run at tiny sizes")
    if options.folder is not None and not options.folder.is_dir():
        parser.error(f"{options.folder} is no folder")
    if options.part and options.folder:
        raise SystemExit(_run_here(options.part, device, options.folder.resolve()))
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-gpu-") as name:
        if options.part:
            raise SystemExit(_run_here(options.part, device, Path(name)))
        shared = ["--device", options.device, "--folder", str(Path(name).resolve())]
        raise SystemExit(0 if run_parts(list(PARTS), shared, options.limit) else 1)


def _run_here(name: str, device: torch.device, folder: Path) -> int:
    session = Session(name, device, folder)
    PARTS[name].run(session)
    return DIFFERENCE if session.differences else 0


if __name__ == "__main__":
    main()
