"""Runs long fuzz campaigns: `python -m tests.fuzz [--inputs 1000000] [--jobs 2] [TARGET...]`.

Each target runs in processes of its own with limited memory, so that a crash is a fault like any
other. The first input of each fault is kept in the folder of `--out`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
os.environ.update(
    HF_HUB_OFFLINE="1",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    TRANSFORMERS_VERBOSITY="error",
)

from fuzzing import Campaign, run_chunk, targets  # noqa: E402

CHUNK = 2_000  # inputs that one task of a process tries


def main() -> int:
    """Runs the campaigns; returns 1 if any input was a fault."""
    arguments = _arguments()
    names = arguments.targets or list(targets())
    share = -(-arguments.inputs // len(names))
    totals = {name: Campaign(name) for name in names}
    for name in names:
        for outcome in _outcomes(name, share, arguments.jobs, arguments.seed):
            _add(totals[name], outcome)
        _print_row(totals[name])
        _save(totals[name], arguments.out)
    print(f"{sum(each.tried for each in totals.values()):,} inputs")  # noqa: T201
    return int(any(each.faults for each in totals.values()))


def _outcomes(name: str, inputs: int, jobs: int, seed: int) -> list[Campaign]:
    starts = range(0, inputs, CHUNK)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        tasks = {
            pool.submit(run_chunk, name, first, min(CHUNK, inputs - first), seed): first
            for first in starts
        }
        outcomes = []
        for task in as_completed(tasks):
            try:
                outcomes.append(task.result())
            except BrokenProcessPool:
                crash = Campaign(name)
                crash.faults[f"crash from input {tasks[task]} on"] += 1
                outcomes.append(crash)
        return outcomes


def _add(total: Campaign, outcome: Campaign) -> None:
    total.tried += outcome.tried
    total.refused += outcome.refused
    total.seconds += outcome.seconds
    total.faults += outcome.faults
    total.examples = outcome.examples | total.examples


def _print_row(total: Campaign) -> None:
    row = {
        "target": total.target,
        "tried": total.tried,
        "refused": total.refused,
        "faults": sum(total.faults.values()),
        "seconds": round(total.seconds),
    }
    print(json.dumps(row), flush=True)  # noqa: T201
    for fault, count in total.faults.most_common():
        print(f"    {count:,} x {fault}", flush=True)  # noqa: T201


def _save(total: Campaign, out: Path) -> None:
    for fault, content in total.examples.items():
        out.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(content).hexdigest()[:8]
        (out / f"{total.target}-{digest}").write_bytes(content)
        (out / f"{total.target}-{digest}.txt").write_text(f"{fault}\n", encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.fuzz")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(targets()))
    parser.add_argument("--inputs", type=int, default=1_000_000, help="in total")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--seed", type=int, default=0, help="another one gives other inputs")
    parser.add_argument("--out", type=Path, default=Path("fuzz-faults"), help="folder of faults")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
