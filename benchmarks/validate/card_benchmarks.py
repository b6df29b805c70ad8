"""The columns of the Tulu card on a model and its 4-bit candidate, within a time:

    python -m benchmarks.validate.card_benchmarks .models/SmolLM2-135M-Instruct --budget 22m

Quantizes the model (groups of 64, 16 samples of 512 tokens of Alpaca-format instructions) unless
`--candidate` names a folder, runs `camelpress validate --tasks tulu --budget`, and prints both
scores of each column, their difference, and what the run took. Options that are not its own, such
as a judge's, go to `validate`. Needs CAMELPRESS_DATA and
`camelpress[tasks]`. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.tables import MB, Target, table, targets_table

CALIBRATION = "calibration/alpaca_en_demo.json"
QUANTIZE = ("--group-size", "64", "--samples", "16", "--sequence-length", "512")
JUDGED = (0, 1, 4)  # exit codes of a validation that came to its end


def camelpress(*arguments: object) -> float:
    """Run a command; seconds that it took.

    Raises:
        SystemExit: it did not come to its end.
    """
    begun = time.monotonic()
    command = [sys.executable, "-m", "camelpress", *map(str, arguments)]
    code = subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode
    if code not in JUDGED:
        raise SystemExit(f"exit code {code} of {' '.join(command)}")
    return time.monotonic() - begun


def columns(facts: dict[str, Any]) -> str:
    """Markdown: of each column both scores in percent, and the difference with its interval."""
    rows = []
    for task in facts["tasks"]:
        interval = [f"{100 * end:+.1f}" for end in task["delta_interval"] or []]
        rows.append(
            [
                task["title"] or task["name"],
                f"{task['n']:,} of {task['of']:,}",
                f"{100 * task['reference_accuracy']:.1f}",
                f"{100 * task['candidate_accuracy']:.1f}",
                f"{100 * task['delta']:+.1f} ({' to '.join(interval) or 'not known'})",
                f"{task['lost']}",
                f"{task['won']}",
            ]
        )
    heads = ["column", "items", "16-bit", "4-bit", "difference, 95 % interval", "lost", "won"]
    return table(heads, rows)


def main() -> int:
    """Print the columns, and whether they came in time; 1 if not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--candidate", type=Path)
    parser.add_argument("--tasks", default="tulu")
    parser.add_argument("--budget", default="22m")
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds of the whole command")
    given, others = parser.parse_known_args()
    data = Path(os.environ["CAMELPRESS_DATA"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        candidate = given.candidate
        if candidate is None:
            candidate = folder / "4bit"
            camelpress(
                "quantize", given.model, candidate, *QUANTIZE, "--calibration", data / CALIBRATION
            )
        out = folder / "report"
        seconds = camelpress(
            "validate", given.model, candidate,
            "--tasks", given.tasks, "--budget", given.budget, "--out", out, *others,
        )  # fmt: skip
        facts = json.loads((out / "report.json").read_text(encoding="utf-8"))["facts"]
    print(columns(facts))
    for task, reason in facts["tasks_missing"].items():
        print(f"\nNot run: {task}: {reason}")
    if facts["averages"]:
        average = facts["averages"]
        scores = " and ".join(f"{100 * average[side]:.1f}" for side in ("reference", "candidate"))
        print(f"\n{average['name']}: {scores}")
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"\nPeak of the largest process: {usage.ru_maxrss * 1024 / MB:,.0f} MB\n")
    target = Target(f"seconds, with a budget of {given.budget}", [seconds], given.limit)
    print(targets_table([target]))
    return int(not target.met)


if __name__ == "__main__":
    raise SystemExit(main())
