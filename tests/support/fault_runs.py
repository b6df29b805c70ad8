"""A run of the whole pipeline that is killed, or failed by its disk, at one operation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from camelpress.core.runtime.resource_usage import Stopwatch
from camelpress.reporting.stage_report import Report
from fault_trial import MINE, Contents, Inputs, Trial, contents, run
from processes import forked

LOCK = "camelpress.lock"
OUTPUTS = ("recovered", "quantized", "validation", "release")
COST = {"seconds": 0.0, "peak_bytes": 0}
RECIPE = """
base: IN/base
diff: IN/make-diff
out: out
quantize:
  calibration: [IN/chat.jsonl]
  group_size: 32
  sequence_length: 64
  samples: 2
  dtype: float32
validate:
  text: [IN/prose.txt]
  sequence_length: 64
  max_tokens: 1000
  gate: {perplexity_ratio: {max: 100}, kl_mean: {max: 100}, top1_agreement: null}
publish: {license: mit}
"""


@dataclass(frozen=True)
class RunTrial(Trial):
    """One fault at one operation of a run of the pipeline.

    Args:
        old_run: folder of the earlier run that is replaced, which quantized otherwise.
    """

    old_run: Path

    def _is_swept(self, path: str) -> bool:
        """Returns whether a path is of an output of a stage."""
        return path.startswith(tuple(f"out/{name}" for name in OUTPUTS))

    def _prepare(self, place: Path) -> None:
        place.mkdir()
        (place / MINE).write_text("beside")
        write_recipe(self.inputs, place)
        if self.replaces:
            copy_run(self.old_run, place)
            (place / "out" / "release" / MINE).write_text("within")

    def _command(self, place: Path) -> list[str]:
        return ["run", str(place / "recipe.yaml"), "-q"]

    def _enter(self) -> None:
        super()._enter()
        freeze_cost()

    def _state(self, place: Path) -> Contents:
        return run_contents(place)

    def _false_output(self, place: Path) -> Iterator[str]:
        """Under the name of each output there is the earlier one, the new one, or nothing."""
        state, runs = self._state(place), (self.expected, run_contents(self.old_run))
        for output in OUTPUTS:
            files = _below(state, output)
            files.pop("fingerprint", None), files.pop("fingerprint.partial", None)
            files.pop(MINE, None)
            if files and files not in [_below(run, output) for run in runs]:
                yield f"half an output is {output}: {sorted(files)}"

    def _strangers(self, place: Path) -> Iterator[str]:
        mine = sorted(path.read_text() for path in place.rglob(MINE))
        if mine != (["beside", "within"] if self.replaces else ["beside"]):
            yield f"a file of the user's is lost: {mine} is left"
        aside = {"release.aside"} if self.replaces else set()
        for folder, allowed in (
            (place, {"out", MINE, "recipe.yaml"}),
            (place / "out", {*OUTPUTS, LOCK, *aside}),
        ):
            if left := {path.name for path in folder.iterdir()} - allowed:
                yield f"{sorted(left)} is left"


def run_trial(inputs: Inputs, place: Path, *, replaces: bool) -> RunTrial:
    """Returns a trial that knows what an undisturbed run leaves."""
    new_run = old_run = place / "new"
    _run_undisturbed(inputs, new_run)
    if replaces:
        old_run = place / "old"
        _run_undisturbed(inputs, old_run, "-o", "quantize.samples=3")
    return RunTrial(inputs, "run", replaces, run_contents(new_run), old_run)


def write_recipe(inputs: Inputs, place: Path) -> None:
    """Writes the recipe of a run of which all inputs lie elsewhere."""
    text = RECIPE.replace("IN/", f"{inputs.folder}/")
    (place / "recipe.yaml").write_text(text, encoding="utf-8")


def copy_run(source: Path, place: Path) -> None:
    """Copies the outputs of a run, and lets its lock name the copies."""
    shutil.copytree(source / "out", place / "out")
    lock = place / "out" / LOCK
    lock.write_text(lock.read_text().replace(str(source), str(place)))


def run_contents(place: Path) -> Contents:
    """Returns the content of every output, and of the lock all but paths and file times."""
    files = contents(place / "out")
    if LOCK in files:
        lock = json.loads(files[LOCK].decode().replace(f"{place}/", ""))
        files[LOCK] = lock["stages"]
    return {name: content for name, content in files.items() if Path(name).name != MINE}


def freeze_cost() -> None:
    """Lets each stage of this process cost the same: then two runs give the same bytes."""
    write = Report.write

    def write_without_cost(report: Report, path: Path) -> None:
        write(report.model_copy(update={"cost": COST}), path)

    setattr(Report, "write", write_without_cost)  # noqa: B010 - mypy knows its type
    setattr(Stopwatch, "cost", lambda watch: COST)  # noqa: B010


def _run_undisturbed(inputs: Inputs, place: Path, *options: str) -> None:
    place.mkdir()
    write_recipe(inputs, place)

    def work() -> None:
        freeze_cost()
        run(["run", str(place / "recipe.yaml"), "-q", *options])

    if code := forked(work):
        raise RuntimeError(f"run ended with {code}")


def _below(files: Contents, folder: str) -> Contents:
    """Returns the contents of one folder, named from there."""
    prefix = f"{folder}/"
    return {
        name.removeprefix(prefix): content
        for name, content in files.items()
        if name.startswith(prefix)
    }
