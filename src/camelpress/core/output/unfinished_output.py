"""Folder of an unfinished output, identified by a mark file with its resume key.

The mark is the first file written and the last one deleted. A folder without a mark belongs to
camelpress only if it is empty, or if its report lists every file: then a kill came between the last
two steps.
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
PARTIAL_MARK_FILE = f"{MARK_FILE}.partial"  # mark truncated by a kill
TEMPORARY_FILES = (
    "journal.jsonl",
    "lanes/*",
    "answers/*",
)  # working files, excluded from an output
# Files reused by a resumed run.
RESUME_FILES = (*TEMPORARY_FILES, "model*.safetensors", "model*.safetensors.partial")
SCRATCH_FILES = ("engine/*", "*.partial")  # further files left by a killed run
MAX_DIFFERENCES = 6  # differences listed in one message
DIGEST = re.compile(r"[0-9a-f]{64}")

ResumeKey = Mapping[str, Any]
ReconcileInputs = Callable[[Path, ResumeKey], ResumeKey]


class OutputMark(NamedTuple):
    """Content of a mark file.

    Args:
        made_from: Resume key: name to plain value of everything with an influence on the output's
            bytes; None for a run without resumption.
        writes: Names and patterns of the files written by the run.
    """

    made_from: ResumeKey | None
    writes: list[str]

    @classmethod
    def read(cls, folder: Path) -> OutputMark | None:
        """Reads the mark of a folder; None without a valid mark."""
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
        """Writes the mark into a folder."""
        content = {"camelpress": "an output that is being made", **self._asdict()}
        write_synced(folder / MARK_FILE, json.dumps(content, indent=2, default=str) + "\n")

    def covers(self, name: str) -> bool:
        """Returns True if the run behind the mark may write a file of this name."""
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
    """Prepares the folder of an output: keeps the files to resume from, or clears it.

    Args:
        partial: Folder of the unfinished output.
        target: Final path of the output.
        made_from: Resume key of this run; None for a run without resumption.
        writes: Names and patterns of the files written by this run.
        restart: True to clear the folder even if its work could be resumed.
        reconcile: Called if the resume keys differ; returns the earlier key with each equivalent
            value replaced by that of this run.
    Raises:
        OutputExists: The folder contains foreign files and no mark.
        OutputProblem: The unfinished output has another resume key, and `restart` is False.
    """
    content = None if made_from is None else json.loads(json.dumps(dict(made_from), default=str))
    mark, new_mark = _require_mark(partial, target), OutputMark(content, sorted(writes))
    if mark is not None and mark.made_from is not None and not restart:
        old_key = mark.made_from
        if old_key != content and reconcile is not None:
            old_key = reconcile(partial, old_key)
        if old_key != content:
            raise _difference_problem(partial, old_key, content)
        set_aside_foreign_files(partial, target, lambda name: not new_mark.covers(name))
        remove_files(
            partial, lambda name: name == MARK_FILE or matches_file_name(name, RESUME_FILES)
        )
    else:
        clear_output(partial, target, mark)
    try:
        new_mark.write(partial)
    except OSError:
        if not list_files(partial) or list_files(partial) == [PARTIAL_MARK_FILE]:
            discard_output(partial, target)
        raise


def clear_output(partial: Path, target: Path, mark: OutputMark | None = None) -> None:
    """Deletes the files of a run except its mark; foreign files are set aside."""
    current_mark = mark or OutputMark.read(partial)
    if current_mark is not None:
        set_aside_foreign_files(partial, target, lambda name: not current_mark.covers(name))
    remove_files(partial, lambda name: name == MARK_FILE)


def discard_output(partial: Path, target: Path) -> None:
    """Deletes the folder of an unfinished output; ignores disk errors, since the next run retries.

    Args:
        partial: Folder with a mark.
        target: Final path of the output.
    """
    with suppress(OSError):
        clear_output(partial, target)
        for name in (PARTIAL_MARK_FILE, MARK_FILE):
            (partial / name).unlink(missing_ok=True)
        partial.rmdir()


def read_resume_key(partial: Path) -> ResumeKey:
    """Reads the resume key of an unfinished output; empty without such an output."""
    mark = OutputMark.read(partial)
    return (mark and mark.made_from) or {}


def has_finished_work(partial: Path) -> bool:
    """Returns True if a folder contains finished work for a resumed run."""
    journal = partial / "journal.jsonl"
    return any(partial.glob("answers/*")) or (
        journal.is_file() and bool(journal.read_bytes().strip())
    )


def _require_mark(partial: Path, target: Path) -> OutputMark | None:
    mark, names = OutputMark.read(partial), set(list_files(partial))
    is_complete = is_camelpress_output(partial) and names <= read_output_files(partial)
    if mark is None and not is_complete and names - {PARTIAL_MARK_FILE}:
        raise OutputExists(
            f"{partial} is not an unfinished output of camelpress and is left alone, and {target} "
            "would be prepared there",
            next_step="move it elsewhere, or name another output",
        )
    return mark


def _difference_problem(
    partial: Path, old_key: ResumeKey, new_key: ResumeKey | None
) -> OutputProblem:
    if new_key is None or old_key.get("stage") != new_key.get("stage"):
        return OutputProblem(
            f"{partial} is an unfinished run of {old_key.get('stage')}",
            next_step="run the command that began it again, or move it elsewhere",
        )
    names = [name for name in {**old_key, **new_key} if old_key.get(name) != new_key.get(name)]
    lines = [
        f"{name}: {_shorten_value(old_key.get(name))} -> {_shorten_value(new_key.get(name))}"
        for name in names
    ]
    rest = [f"and {len(lines) - MAX_DIFFERENCES} more"] if len(lines) > MAX_DIFFERENCES else []
    return OutputProblem(
        f"{partial} was begun with other inputs or settings and is kept "
        f"({', '.join([*lines[:MAX_DIFFERENCES], *rest])})",
        next_step="repeat the earlier command to resume it, or give --restart to begin again",
    )


def _shorten_value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:12] if DIGEST.fullmatch(text) else text[:60]


def _is_resume_key(content: Any) -> bool:
    return content is None or isinstance(content, dict)
