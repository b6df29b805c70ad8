"""Writes the tables of docs/compatibility.md from the outcomes of the clients."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from checkpoints import Kind
from loaders import KNOWN, TABLES, Client, Outcome, known

BEGIN, END = "<!-- begin: tables of make test-clients -->", "<!-- end -->"
NOT_RUN, ANY = "not run", "any"
Found = Mapping[tuple[Client, Kind], Outcome]


def write(document: Path, found: Found, kinds: list[Kind]) -> None:
    """Replaces the text between the two marks.

    Raises:
        ValueError: the document lacks them.
    """
    text = document.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{document} lacks {BEGIN} or {END}")
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    document.write_text(f"{before}{BEGIN}\n\n{tables(found, kinds)}\n\n{END}{after}", "utf-8")


def tables(found: Found, kinds: list[Kind]) -> str:
    """Returns Markdown: a table for each group of clients, then the numbered notes."""
    rows: dict[str, list[Kind]] = defaultdict(list)
    for kind in kinds:
        rows[kind.row].append(kind)
    notes: list[str] = []
    parts = []
    for title, clients in TABLES.items():
        lines = [
            f"### {title}",
            "",
            "| checkpoint | " + " | ".join(client.title for client in clients) + " |",
            "|---|" + "---:|" * len(clients),
        ]
        for row, members in rows.items():
            cells = [_cell(client, members, found, notes) for client in clients]
            lines.append(f"| {row} | {' | '.join(cells)} |")
        agreed = [_agreed(client, found) for client in clients]
        lines.append(f"| fewest equal tokens of 20 | {' | '.join(agreed)} |")
        parts.append("\n".join(lines))
    numbered = "\n".join(f"{number}. {note}" for number, note in enumerate(notes, start=1))
    return "\n\n".join([*parts, numbered])


def _cell(client: Client, members: list[Kind], found: Found, notes: list[str]) -> str:
    """Returns one word for equal group sizes, and a word for each size where sizes differ."""
    sizes_by_word: dict[str, list[int]] = defaultdict(list)
    largest = 0.0
    for kind in members:
        outcome = found.get((client, kind))
        if outcome is None:
            sizes_by_word[NOT_RUN].append(kind.group)
        elif outcome.word == "ok" and known(client, kind) is None:
            largest = max(largest, outcome.difference or 0.0)
            sizes_by_word["ok"].append(kind.group)
        else:
            sizes_by_word[_word(client, kind, outcome, notes)].append(kind.group)
    shown = {key: f"{largest:.0e}" if key == "ok" else key for key in sizes_by_word}
    if len(sizes_by_word) == 1:
        return next(iter(shown.values()))
    return "; ".join(f"{shown[key]} ({_groups(sizes)})" for key, sizes in sizes_by_word.items())


def _word(client: Client, kind: Kind, outcome: Outcome, notes: list[str]) -> str:
    entry = known(client, kind)
    note = entry.reason if entry else f"Not expected: {re.sub('[|<>`]', ' ', outcome.detail)[:200]}"
    if note not in notes:
        notes.append(note)
    word = ANY if entry and entry.word == ANY else outcome.word
    return f"{word} [{notes.index(note) + 1}]"


def _groups(sizes: list[int]) -> str:
    return ", ".join("row" if size == -1 else str(size) for size in sizes)


def _agreed(client: Client, found: Found) -> str:
    counts = [
        outcome.tokens
        for (other, _), outcome in found.items()
        if other == client and outcome.word == "ok" and outcome.tokens is not None
    ]
    return str(min(counts)) if counts else ""


def unused(found: Found) -> list[str]:
    """Returns the reasons that no checkpoint needed."""
    used = {known(client, kind) for client, kind in found}
    return [entry.reason for entry in KNOWN if entry not in used]
