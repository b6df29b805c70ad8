"""A command that is killed, or failed by its disk, at one operation, and the same command again."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import matplotlib.figure  # noqa: F401 - loaded once, before any fork

import pico
from camelpress.cli import commands, entry_point  # noqa: F401 - likewise
from camelpress.pipeline import run as pipeline  # noqa: F401 - likewise
from camelpress.publish.destinations import hub_destination  # noqa: F401 - likewise
from camelpress.quantize.kernels import cpu_kernel  # noqa: F401 - compiled once, before any fork
from disk_hooks import KILL, Disk
from processes import forked

FAULTS = (KILL, errno.ENOSPC, errno.EIO, errno.ESTALE, errno.EACCES)
CALIBRATED = "--group-size 32 --sequence-length 64 --samples 2 --dtype float32"
SCORED = "--text IN/prose.txt --sequence-length 64 --max-tokens 1000"
COMMANDS = {  # IN is the folder of the inputs, OUT the output
    "recover": "recover IN/base IN/make-diff OUT",
    "make-diff": "make-diff IN/base IN/tuned OUT",
    "quantize": f"quantize IN/tuned OUT --calibration IN/chat.jsonl {CALIBRATED}",
    "export": "export IN/quantize OUT --to dense",
    "validate": f"validate IN/tuned IN/quantize --out OUT {SCORED} --gate IN/gate.yaml",
    "store": f"store IN/tuned OUT {SCORED}",
    "gate": "gate IN/validate --gate IN/gate.yaml --out OUT",
    "publish": "publish IN/quantize --report IN/validate --to OUT --license apache-2.0",
}
RARELY = 32  # of so many operations that have their own row, one is tried again elsewhere
PAGES = (".html", ".md", ".xml")
TOKEN = "hf_Tell0No0One0What0This0Token0Is"  # in the environment of every command
MINE = "mine.txt"  # the user's own file, in an earlier output and beside it
Contents = dict[str, Any]


@dataclass(frozen=True)
class Inputs:
    """The models, texts and gate that the stages are run on."""

    folder: Path

    @classmethod
    def made(cls, folder: Path) -> Inputs:
        """Write them, each by the stage that makes it."""
        base = pico.write_model(folder / "base")
        pico.write_tuned(folder / "tuned", base, extra_rows=0)
        pico.write_chat(folder / "chat.jsonl")
        pico.write_text(folder / "prose.txt", seed=3)
        (folder / "gate.yaml").write_text(
            "perplexity_ratio: {max: 100}\nkl_mean: {max: 100}\ntop1_agreement: null\n"
        )
        inputs = cls(folder)
        for name in ("make-diff", "quantize", "validate"):
            if code := forked(partial(run, inputs.command(name, folder / name))):
                raise RuntimeError(f"{name} ended with {code}")
        return inputs

    def command(self, stage: str, out: Path) -> list[str]:
        """The command line of a stage."""
        text = COMMANDS[stage].replace("IN/", f"{self.folder}/").replace("OUT", str(out))
        return [*text.split(), "-q"]


@dataclass(frozen=True)
class Trial:
    """One fault at one operation of one stage, in a folder of its own.

    Args:
        inputs: of the stages.
        stage: its name.
        replaces: an earlier output, with a file of the user's in it, is replaced.
        expected: the output of a run that nothing disturbs.
    """

    inputs: Inputs
    stage: str
    replaces: bool
    expected: Contents

    def operations(self, place: Path) -> list[str]:
        """Returns the path of each operation of an undisturbed run, empty for a connection."""
        paths, there = place / "operations.json", place / "there"
        self._prepare(there)
        disk = Disk(there)

        def work() -> None:
            self._enter()
            disk.install()
            try:
                run(self._command(there))
            finally:
                os.write(os.open(paths, os.O_CREAT | os.O_WRONLY), json.dumps(disk.paths).encode())

        if code := forked(work):
            raise RuntimeError(f"{self.stage} ended with {code}")
        return [path.removeprefix(f"{there}/") for path in json.loads(paths.read_text())]

    def chosen(self, paths: Sequence[str], every: int) -> list[int]:
        """Returns the numbers of the operations that are tried, fewer of those of other rows."""
        numbers = range(len(paths))
        repeated = [number for number in numbers if self._is_swept(paths[number])]
        first = [number for number in numbers if not self._is_swept(paths[number])]
        return sorted([*first[::every], *repeated[:: every * RARELY]])

    def faults_at(self, place: Path, at: int, fault: int) -> Iterator[str]:
        """Run with a fault, look, run again, look; yields what is wrong."""
        there, errors = place / "there", place / "errors"
        self._prepare(there)
        code = self._ended(there, errors, Disk(there, at, fault))
        yield from _told(code, errors.read_text(), fault)
        yield from self._false_output(there)
        yield from _leaks(place)
        code = self._ended(there, errors, None)
        complete = self._state(there) == self.expected
        if not complete:
            yield f"the same command ends with {code}: {errors.read_text()[-300:]}"
        if code and not (complete and not self.replaces and "exists" in errors.read_text()):
            yield f"the same command ends with {code} and {errors.read_text()[-300:]}"
        yield from self._strangers(there)
        yield from _leaks(place)

    def _is_swept(self, path: str) -> bool:
        """Returns whether an operation on a path is one of a stage that has its own row."""
        return False

    def _enter(self) -> None:
        """Prepare the process of a command."""
        os.environ["HF_TOKEN"] = TOKEN

    def _ended(self, place: Path, errors: Path, disk: Disk | None) -> int:
        def work() -> None:
            output = os.open(errors, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            os.dup2(output, 2)
            sys.stderr = open(2, "w", closefd=False)
            self._enter()
            if disk is not None:
                disk.install()
            run(self._command(place))
            sys.stderr.flush()

        return forked(work)

    def _state(self, place: Path) -> Contents:
        """Returns the content of the output."""
        return contents(place / "out")

    def _prepare(self, place: Path) -> None:
        place.mkdir()
        (place / MINE).write_text("beside")
        if self.replaces:
            shutil.copytree(self.inputs.folder / "make-diff", place / "out")
            (place / "out" / MINE).write_text("within")

    def _command(self, place: Path) -> list[str]:
        command = self.inputs.command(self.stage, place / "out")
        return [*command, "--force"] if self.replaces else command

    def _false_output(self, place: Path) -> Iterator[str]:
        """Under the output's name there is the old one, the new one, or nothing."""
        found = contents(place / "out")
        found.pop("fingerprint", None), found.pop("fingerprint.partial", None)
        old = contents(self.inputs.folder / "make-diff") | {MINE: b"within"}
        if found and found not in ([old, self.expected] if self.replaces else [self.expected]):
            yield f"half an output has its name: {sorted(found)}"

    def _strangers(self, place: Path) -> Iterator[str]:
        kept = sorted(path.read_text() for path in place.rglob(MINE))
        if kept != (["beside", "within"] if self.replaces else ["beside"]):
            yield f"a file of the user's is lost: {kept} is left"
        allowed = {"out", MINE} | ({"out.aside"} if self.replaces else set())
        if left := {path.name for path in place.iterdir()} - allowed:
            yield f"{sorted(left)} is left"
        if self.replaces and [path.name for path in (place / "out.aside").iterdir()] != [MINE]:
            yield "more than the user's file is set aside"


def run(arguments: Sequence[str]) -> None:
    """The command line in this process, which ends with its code."""
    sys.argv = ["camelpress", *arguments]
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try:
        entry_point.main()
    except SystemExit as end:
        if end.code:
            os._exit(int(end.code))


def contents(folder: Path) -> Contents:
    """Name to bytes of every file; of a report all but its cost, of its pages the names alone."""
    found: Contents = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        found[name] = None if path.suffix in PAGES else path.read_bytes()
        if path.name == "report.json" or path.name.endswith("-report.json"):
            found[name] = {**json.loads(path.read_bytes()), "cost": None}
    return found


def trial(inputs: Inputs, stage: str, place: Path, *, replaces: bool) -> Trial:
    """A trial that knows the output of an undisturbed run."""
    out = place / f"undisturbed-{replaces}" / "out"
    out.parent.mkdir()
    if code := forked(lambda: run(inputs.command(stage, out))):
        raise RuntimeError(f"{stage} ended with {code}")
    return Trial(inputs, stage, replaces, contents(out))


def _told(code: int, errors: str, fault: int) -> Iterator[str]:
    if fault == KILL and code not in (-9, 0):
        yield f"killed, it ends with {code}: {errors[-300:]}"
    if fault != KILL and code not in (0, 3, 75):
        yield f"it ends with {code}: {errors[-300:]}"
    lines = [line for line in errors.splitlines() if "did not belong there" not in line]
    if fault != KILL and code and not (len(lines) == 1 and lines[0].startswith("error: ")):
        yield f"it says {errors[-600:]}"


def _leaks(place: Path) -> Iterator[str]:
    for path in (path for path in place.rglob("*") if path.is_file()):
        if TOKEN.encode() in path.read_bytes():
            yield f"{path.relative_to(place)} holds the token"
