"""Journal of finished work, one line per item, to resume an interrupted run.

A resumed run verifies each entry: a tensor counts as finished if its bytes in the output have the
hash in the journal.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any

from camelpress.core.files.file_hashes import sha256_json

JOURNAL_FILE = "journal.jsonl"
DIGEST_KEY = "facts_sha256"  # key of the hash over the facts of a line; detects damage


class Journal:
    """Appends facts by name to a file; the file is deleted after a run without errors.

    Args:
        folder: Output folder, possibly with the journal of an earlier run.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / JOURNAL_FILE
        self._lock = Lock()
        self._entries = read_journal(folder)
        self._file = self._path.open("a", encoding="utf-8")
        self._file.write("\n")  # terminates a line truncated by a kill

    def __getitem__(self, name: str) -> dict[str, Any] | None:
        return self._entries.get(name)

    def add(self, name: str, facts: dict[str, Any]) -> None:
        """Records the facts of one finished item; safe to call from any thread."""
        with self._lock:
            self._file.write(_line(name, facts))
            self._file.flush()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        error_class: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
        if error_class is None:
            self._path.unlink()


def read_journal(folder: Path) -> dict[str, dict[str, Any]]:
    """Reads the facts by name from the journal in a folder; empty without a journal."""
    path = folder / JOURNAL_FILE
    lines = path.read_bytes().splitlines() if path.is_file() else []
    return {name: facts for line in lines for name, facts in _parse_line(line).items()}


def invalidate_entries(folder: Path, names: Iterable[str]) -> None:
    """Marks the entries of the given names as unfinished."""
    with (folder / JOURNAL_FILE).open("a", encoding="utf-8") as file:
        for name in sorted(names):
            file.write("\n" + _line(name, {"sha256": ""}))
        file.flush()
        os.fsync(file.fileno())


def _line(name: str, facts: dict[str, Any]) -> str:
    """Returns a journal line of facts with a hash over them."""
    return json.dumps({name: {**facts, DIGEST_KEY: sha256_json(facts)}}) + "\n"


def _parse_line(line: bytes) -> dict[str, dict[str, Any]]:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    entries = content.items() if isinstance(content, dict) else ()
    return {name: facts for name, facts in entries if _pop_valid_digest(facts)}


def _pop_valid_digest(facts: Any) -> bool:
    """Removes the hash from the facts of a line; returns True if it matches them."""
    return isinstance(facts, dict) and facts.pop(DIGEST_KEY, None) == sha256_json(facts)
