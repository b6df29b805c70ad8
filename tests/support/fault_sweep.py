"""Every command, killed or failed by its disk at each operation, and the same command once more.

`make faults` tries all of it and prints a table; the tests try a few operations of each command.
"""

from __future__ import annotations

import argparse
import errno
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import hub_process
from disk_hooks import KILL
from fault_runs import run_trial
from fault_trial import COMMANDS, FAULTS, Inputs, Trial, trial
from fault_uploads import upload_trial
from hub_process import HubProcess

STAGES = (*COMMANDS, "upload", "run")
COLUMNS = ("operations", "kills", "faults", "survived", "lost")


def make_trial(
    inputs: Inputs, hub: HubProcess, stage: str, place: Path, *, replaces: bool
) -> Trial:
    """Returns a trial of a stage, of an upload or of the whole pipeline."""
    if stage == "upload":
        return upload_trial(inputs, hub, place, replaces=replaces)
    if stage == "run":
        return run_trial(inputs, place, replaces=replaces)
    return trial(inputs, stage, place, replaces=replaces)


def main() -> None:
    """Try everything, and print a row for each stage."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--stage", action="append", choices=STAGES)
    parser.add_argument("--every", type=int, default=1, help="every which operation is tried")
    options = parser.parse_args()
    torch.set_num_threads(1)
    counts: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as folder, hub_process.started() as hub:
        (Path(folder) / "inputs").mkdir()
        inputs = Inputs.made(Path(folder) / "inputs")
        for stage in options.stage or STAGES:
            _sweep(partial(make_trial, inputs, hub, stage), Path(folder), options.every, counts)
            row = " | ".join(f"{counts[stage, kind]:,}" for kind in COLUMNS)
            sys.stdout.write(f"| {stage} | {row} |\n")
            sys.stdout.flush()
    total = {kind: sum(n for (_, each), n in counts.items() if each == kind) for kind in COLUMNS}
    sys.stdout.write(f"| all | {' | '.join(f'{total[kind]:,}' for kind in COLUMNS)} |\n")
    sys.exit(bool(total["lost"]))


def _sweep(
    make: Callable[..., Trial], folder: Path, every: int, counts: Counter[tuple[str, str]]
) -> None:
    for replaces in (False, True):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            swept = make(Path(place), replaces=replaces)
            paths = swept.operations(Path(place))
            shutil.rmtree(Path(place) / "there")
            counts[swept.stage, "operations"] += len(paths)
            for number, at in enumerate(swept.chosen(paths, every)):
                for fault in (KILL, FAULTS[1 + number % (len(FAULTS) - 1)]):
                    with tempfile.TemporaryDirectory(dir=place) as here:
                        faults = [*swept.faults_at(Path(here), at, fault)]
                    counts[swept.stage, "faults" if fault else "kills"] += 1
                    counts[swept.stage, "lost" if faults else "survived"] += 1
                    for line in faults:
                        name = errno.errorcode.get(fault, "kill")
                        sys.stderr.write(
                            f"{swept.stage} {replaces} {at} {paths[at]} {name}: {line}\n"
                        )


if __name__ == "__main__":
    main()
