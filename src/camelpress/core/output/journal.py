"""What a run has finished, line by line, so that a second one does not do it again.

Nothing in it is believed without a look: a tensor counts as finished if the bytes in its place
have the hash that the journal gives.
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
DIGEST_KEY = "facts_sha256"  # the key of a hash over the facts of a line, which may be damaged


class Journal:
    """Facts by name, kept in a file that grows by a line each; removed when all went well.

    Args:
        folder: of the output; an earlier run's journal may lie there.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / JOURNAL_FILE
        self._lock = Lock()
        self._found = read_journal(folder)
        self._file = self._path.open("a", encoding="utf-8")
        self._file.write("\n")  # ends a line that a kill cut short

    def __getitem__(self, name: str) -> dict[str, Any] | None:
        return self._found.get(name)

    def add(self, name: str, facts: dict[str, Any]) -> None:
        """Keep the facts of something that is finished, from any thread."""
        with self._lock:
            self._file.write(_line(name, facts))
            self._file.flush()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._file.close()
        if kind is None:
            self._path.unlink()


def read_journal(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns the facts by name that a journal in a folder holds; none where there is none."""
    path = folder / JOURNAL_FILE
    lines = path.read_bytes().splitlines() if path.is_file() else []
    return {name: facts for line in lines for name, facts in _parse_line(line).items()}


def invalidate_entries(folder: Path, names: Iterable[str]) -> None:
    """Let nothing count as finished that has one of some names."""
    with (folder / JOURNAL_FILE).open("a", encoding="utf-8") as file:
        for name in sorted(names):
            file.write("\n" + _line(name, {"sha256": ""}))
        file.flush()
        os.fsync(file.fileno())


def _line(name: str, facts: dict[str, Any]) -> str:
    """Returns the line of some facts, with a hash over them."""
    return json.dumps({name: {**facts, DIGEST_KEY: sha256_json(facts)}}) + "\n"


def _parse_line(line: bytes) -> dict[str, dict[str, Any]]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    entries = found.items() if isinstance(found, dict) else ()
    return {name: facts for name, facts in entries if _pop_valid_digest(facts)}


def _pop_valid_digest(facts: Any) -> bool:
    """Takes the hash out of the facts of a line, and returns whether it is theirs."""
    return isinstance(facts, dict) and facts.pop(DIGEST_KEY, None) == sha256_json(facts)
