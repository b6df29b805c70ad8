"""The tables of docs/compatibility.md, from what the clients made of the checkpoints."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from checkpoints import Kind
from loaders import KNOWN, TABLES, Client, Outcome, known

BEGIN, END = "<!-- begin: what make test-clients found -->", "<!-- end -->"
NOT_RUN, ANY = "not run", "any"
Found = Mapping[tuple[Client, Kind], Outcome]


def write(document: Path, found: Found, kinds: list[Kind]) -> None:
    """Replace what stands between the two marks.

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
    """Markdown: a table for each way to load, and the notes to them."""
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
        lines.append(f"| least tokens of 20 that agree | {' | '.join(agreed)} |")
        parts.append("\n".join(lines))
    told = "\n".join(f"{number}. {note}" for number, note in enumerate(notes, start=1))
    return "\n\n".join([*parts, told])


def _cell(client: Client, members: list[Kind], found: Found, notes: list[str]) -> str:
    """One word for all group sizes where they are alike, and each by itself where not."""
    told: dict[str, list[int]] = defaultdict(list)
    largest = 0.0
    for kind in members:
        outcome = found.get((client, kind))
        if outcome is None:
            told[NOT_RUN].append(kind.group)
        elif outcome.word == "ok" and known(client, kind) is None:
            largest = max(largest, outcome.difference or 0.0)
            told["ok"].append(kind.group)
        else:
            told[_word(client, kind, outcome, notes)].append(kind.group)
    shown = {key: f"{largest:.0e}" if key == "ok" else key for key in told}
    if len(told) == 1:
        return next(iter(shown.values()))
    return "; ".join(f"{shown[key]} ({_groups(sizes)})" for key, sizes in told.items())


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
    """Reasons that no checkpoint needed."""
    used = {known(client, kind) for client, kind in found}
    return [entry.reason for entry in KNOWN if entry not in used]
