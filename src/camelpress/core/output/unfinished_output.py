"""The folder in which an output is made: a mark in it says whose it is and what it is made from.

The mark is the first file in the folder and the last to go. A folder without it is ours only if it
is empty, or if a manifest of ours covers every file: then a kill fell between the last two steps.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from camelpress.core.errors import OutputExists, OutputProblem
from camelpress.core.output.durable_writes import write_synced
from camelpress.core.output.output_contents import (
    is_camelpress_output,
    list_files,
    matches_file_name,
    read_output_files,
    remove_files,
    set_aside_foreign_files,
)

MARK_FILE = "fingerprint"
PARTIAL_MARK_FILE = f"{MARK_FILE}.partial"  # a mark that a kill cut short
TEMPORARY_FILES = ("journal.jsonl", "lanes/*", "answers/*")  # never part of an output
RESUME_FILES = (
    *TEMPORARY_FILES,
    "model*.safetensors",
    "model*.safetensors.partial",
)  # for the next run
SCRATCH_FILES = ("engine/*", "*.partial")  # further files that a killed run may leave
MAX_DIFFERENCES = 6  # differences in one message
DIGEST = re.compile(r"[0-9a-f]{64}")

ResumeKey = Mapping[str, Any]
ReconcileInputs = Callable[[Path, ResumeKey], ResumeKey]


class OutputMark(NamedTuple):
    """The content of a mark.

    Args:
        made_from: name to plain value of everything that decides the output's bytes; None for a
            run that does not resume.
        writes: names and patterns of the files that the run writes.
    """

    made_from: ResumeKey | None
    writes: list[str]

    @classmethod
    def read(cls, folder: Path) -> OutputMark | None:
        """The mark of a folder; None where there is none of ours."""
        path = folder / MARK_FILE
        try:
            content = json.loads(path.read_bytes()) if path.is_file() else None
        except (ValueError, RecursionError):
            return None
        if not isinstance(content, dict) or content.keys() != {"camelpress", *cls._fields}:
            return None
        made_from, writes = content["made_from"], content["writes"]
        is_mark = isinstance(writes, list) and all(isinstance(name, str) for name in writes)
        return cls(made_from, writes) if is_mark and _is_resume_key(made_from) else None

    def write(self, folder: Path) -> None:
        """Put it into a folder."""
        content = {"camelpress": "an output that is being made", **self._asdict()}
        write_synced(folder / MARK_FILE, json.dumps(content, indent=2, default=str) + "\n")

    def covers(self, name: str) -> bool:
        """Returns True if the run that wrote the mark may write a file of this name."""
        return name == MARK_FILE or matches_file_name(
            name, (*self.writes, *RESUME_FILES, *SCRATCH_FILES, PARTIAL_MARK_FILE)
        )


def begin_output(
    partial: Path,
    target: Path,
    made_from: ResumeKey | None,
    writes: Collection[str],
    *,
    restart: bool,
    reconcile: ReconcileInputs | None = None,
) -> None:
    """Make a folder ready: go on with what an earlier run left there, or clear it.

    Args:
        partial: the folder.
        target: the output.
        made_from, writes: of the mark.
        restart: clear it even where it could be gone on with.
        reconcile: gives the earlier values again, with those of now in the place of each that
            means the same; it is asked where they differ.
    Raises:
        OutputExists: somebody else's files are there.
        OutputProblem: it was made from something else, and `restart` is not given.
    """
    content = None if made_from is None else json.loads(json.dumps(dict(made_from), default=str))
    mark, now = _require_mark(partial, target), OutputMark(content, sorted(writes))
    if mark is not None and mark.made_from is not None and not restart:
        before = mark.made_from
        if before != content and reconcile is not None:
            before = reconcile(partial, before)
        if before != content:
            raise _difference_problem(partial, before, content)
        set_aside_foreign_files(partial, target, lambda name: not now.covers(name))
        remove_files(
            partial, lambda name: name == MARK_FILE or matches_file_name(name, RESUME_FILES)
        )
    else:
        clear_output(partial, target, mark)
    try:
        now.write(partial)
    except OSError:
        if not list_files(partial) or list_files(partial) == [PARTIAL_MARK_FILE]:
            discard_output(partial, target)
        raise


def clear_output(partial: Path, target: Path, mark: OutputMark | None = None) -> None:
    """Delete what a run wrote into a folder, all but the mark; strangers are set aside."""
    mark = mark or OutputMark.read(partial)
    if mark is not None:
        written = mark
        set_aside_foreign_files(partial, target, lambda name: not written.covers(name))
    remove_files(partial, lambda name: name == MARK_FILE)


def discard_output(partial: Path, target: Path) -> None:
    """Remove a folder that is not gone on with; what cannot be removed now, the next run removes.

    Args:
        partial: the folder, which has a mark.
        target: the output.
    """
    with suppress(OSError):
        clear_output(partial, target)
        for name in (PARTIAL_MARK_FILE, MARK_FILE):
            (partial / name).unlink(missing_ok=True)
        partial.rmdir()


def read_resume_key(partial: Path) -> ResumeKey:
    """The values that an unfinished output is made from; none where there is no such output."""
    mark = OutputMark.read(partial)
    return (mark and mark.made_from) or {}


def has_finished_work(partial: Path) -> bool:
    """Returns whether a run finished anything in a folder that another one can go on with."""
    journal = partial / "journal.jsonl"
    return any(partial.glob("answers/*")) or (
        journal.is_file() and bool(journal.read_bytes().strip())
    )


def _require_mark(partial: Path, target: Path) -> OutputMark | None:
    mark, names = OutputMark.read(partial), set(list_files(partial))
    complete = is_camelpress_output(partial) and names <= read_output_files(partial)
    if mark is None and not complete and names - {PARTIAL_MARK_FILE}:
        raise OutputExists(
            f"{partial} is not an unfinished output of camelpress and is left alone, and {target} "
            "would be prepared there",
            next_step="move it elsewhere, or name another output",
        )
    return mark


def _difference_problem(partial: Path, before: ResumeKey, now: ResumeKey | None) -> OutputProblem:
    if now is None or before.get("stage") != now.get("stage"):
        return OutputProblem(
            f"{partial} is an unfinished run of {before.get('stage')}",
            next_step="run the command that began it again, or move it elsewhere",
        )
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    told = [
        f"{name}: {_shorten_value(before.get(name))} -> {_shorten_value(now.get(name))}"
        for name in names
    ]
    more = [f"and {len(told) - MAX_DIFFERENCES} more"] if len(told) > MAX_DIFFERENCES else []
    return OutputProblem(
        f"{partial} was begun otherwise and is kept "
        f"({', '.join([*told[:MAX_DIFFERENCES], *more])})",
        next_step="run it as it was begun to go on, or give --restart to begin again",
    )


def _shorten_value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:12] if DIGEST.fullmatch(text) else text[:60]


def _is_resume_key(content: Any) -> bool:
    return content is None or isinstance(content, dict)
