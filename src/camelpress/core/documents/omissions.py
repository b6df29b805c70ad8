"""Counts everything that is left out of a file, by unit and reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MAX_REASONS = 20  # distinct reasons of one unit; more are counted together
OTHER_REASONS = "others"

OmissionCounts = Mapping[str, Mapping[str, int]]  # unit (rows, turns, ...), then reason, then count


class Omission(Exception):  # noqa: N818 - most are counted, not raised
    """A row, or a part of one, that cannot be used.

    Args:
        reason: a clause such as "output is null", equal for all rows of the same fault.
        unit: a plural noun for the part that is left out.
        count: the number of such parts.
        next_step: an imperative for a file in which nothing else can be read.
    """

    def __init__(
        self,
        reason: str,
        unit: str = "rows",
        count: int = 1,
        *,
        next_step: str = "mend that row, or give another file",
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.unit = unit
        self.count = count
        self.next_step = next_step

    def with_unit(self, unit: str) -> Omission:
        """Returns the same reason for another unit."""
        return Omission(self.reason, unit, self.count, next_step=self.next_step)


class OmissionCounter:
    """Adds omissions up and keeps the first with its place."""

    def __init__(self) -> None:
        self.counts: dict[str, dict[str, int]] = {}
        self.first_omission: tuple[str, Omission] | None = None

    def add(self, place: str, omission: Omission) -> None:
        """Counts one omission; an unread field is never the first reason."""
        reasons = self.counts.setdefault(omission.unit, {})
        known = omission.reason in reasons or len(reasons) < MAX_REASONS
        reason = omission.reason if known else OTHER_REASONS
        reasons[reason] = reasons.get(reason, 0) + omission.count
        if self.first_omission is None and omission.unit != "fields":
            self.first_omission = place, omission


def describe_omissions(counts: OmissionCounts, rows: int) -> str:
    """Returns `2 of 9 rows (1 output is null, 1 text is blank), 3 turns (...)`, without fields."""
    units = {unit: reasons for unit, reasons in counts.items() if unit != "fields"}
    return ", ".join(_describe_unit(unit, reasons, rows) for unit, reasons in units.items())


def omission_rows(files: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Returns a label and a text for everything that the files of a report leave out.

    Args:
        files: each with `name`, `rows` and `omissions`, and of a calibration `unanswered`; older
            reports lack all but the name.
    """
    rows = []
    for file in files:
        name, counts = file["name"], file.get("omissions") or {}
        summary = describe_omissions(counts, file.get("rows") or 0)
        rows += [("left out", f"{name}: {summary}")] if summary else []
        unanswered = file.get("unanswered") or 0
        if unanswered:
            rows.append(("left out", f"{name}: {unanswered:,} cut before an answer begins"))
        fields = ", ".join(counts.get("fields", {}))
        rows += [("not read", f"{name}: fields {fields}")] if fields else []
    return rows


def merge_counts(parts: Iterable[OmissionCounts]) -> dict[str, dict[str, int]]:
    """Adds the counts of several files up."""
    total: dict[str, dict[str, int]] = {}
    for part in parts:
        for unit, reasons in part.items():
            for reason, count in reasons.items():
                sums = total.setdefault(unit, {})
                sums[reason] = sums.get(reason, 0) + count
    return total


def _describe_unit(unit: str, reasons: Mapping[str, int], rows: int) -> str:
    total = sum(reasons.values())
    named = unit.removesuffix("s") if total == 1 else unit
    amount = f"{total:,} of {rows:,} rows" if unit == "rows" else f"{total:,} {named}"
    causes = (
        f"{count:,} {'for other reasons' if reason == OTHER_REASONS else f'because {reason}'}"
        for reason, count in reasons.items()
    )
    return f"{amount} ({', '.join(causes)})"
