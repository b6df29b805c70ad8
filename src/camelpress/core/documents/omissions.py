"""Counts omissions from a file, by unit and reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

MAX_REASONS = 20  # distinct reasons per unit; others are counted together
OTHER_REASONS = "others"

OmissionCounts = Mapping[str, Mapping[str, int]]  # unit (rows, turns, ...) to reason to count


class Omission(Exception):  # noqa: N818 - most are counted, not raised
    """An unusable row, or part of a row.

    Args:
        reason: clause such as "output is null", equal for all rows of the same fault.
        unit: plural noun of the omitted parts.
        count: number of omitted parts.
        next_step: advice for a file without any usable row.
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
    """Counts omissions, and keeps the first one with its label."""

    def __init__(self) -> None:
        self.counts: dict[str, dict[str, int]] = {}
        self.first_omission: tuple[str, Omission] | None = None

    def add(self, label: str, omission: Omission) -> None:
        """Counts one omission; an unread field is never the first reason."""
        reasons = self.counts.setdefault(omission.unit, {})
        is_listed = omission.reason in reasons or len(reasons) < MAX_REASONS
        reason = omission.reason if is_listed else OTHER_REASONS
        reasons[reason] = reasons.get(reason, 0) + omission.count
        if self.first_omission is None and omission.unit != "fields":
            self.first_omission = label, omission


def describe_omissions(counts: OmissionCounts, rows: int) -> str:
    """Returns `2 of 9 rows (1 because output is null, ...), 3 turns (...)`, without fields."""
    units = {unit: reasons for unit, reasons in counts.items() if unit != "fields"}
    return ", ".join(_describe_unit(unit, reasons, rows) for unit, reasons in units.items())


def omission_rows(
    name: str, counts: OmissionCounts | None, rows: int | None, unanswered: int | None = None
) -> list[tuple[str, str]]:
    """Returns label and text for all omissions from a file of a report.

    Args:
        name: name of the file.
        counts: omissions from the file; None if the report does not hold them.
        rows: rows of the file; None if the report does not hold them.
        unanswered: conversations of a calibration file, cut before an answer begins.
    """
    counts = counts or {}
    labelled = []
    summary = describe_omissions(counts, rows or 0)
    if summary:
        labelled.append(("left out", f"{name}: {summary}"))
    if unanswered:
        labelled.append(("left out", f"{name}: {unanswered:,} cut before an answer begins"))
    if fields := ", ".join(counts.get("fields", {})):
        labelled.append(("not read", f"{name}: fields {fields}"))
    return labelled


def merge_counts(parts: Iterable[OmissionCounts]) -> dict[str, dict[str, int]]:
    """Adds up the counts of several files."""
    total: dict[str, dict[str, int]] = {}
    for part in parts:
        for unit, reasons in part.items():
            for reason, count in reasons.items():
                sums = total.setdefault(unit, {})
                sums[reason] = sums.get(reason, 0) + count
    return total


def _describe_unit(unit: str, reasons: Mapping[str, int], rows: int) -> str:
    total = sum(reasons.values())
    noun = unit.removesuffix("s") if total == 1 else unit
    amount = f"{total:,} of {rows:,} rows" if unit == "rows" else f"{total:,} {noun}"
    causes = (
        f"{count:,} {'for other reasons' if reason == OTHER_REASONS else f'because {reason}'}"
        for reason, count in reasons.items()
    )
    return f"{amount} ({', '.join(causes)})"
