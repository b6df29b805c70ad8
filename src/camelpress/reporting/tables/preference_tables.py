"""What a judge said of two models' outputs, as rows of a table and as sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from camelpress.reporting.number_format import NO_VALUE, format_points, format_points_interval

Facts = Mapping[str, Any]
Row = dict[str, Any]
ORDER_WORDS = {True: "first", False: "second"}
OUTCOME_WORDS = {1.0: "wins", 0.0: "loses", 0.5: "draws", None: "has no verdict"}


def preference_rows(facts: Facts) -> list[Row]:
    """A row for each two whose outputs were compared, task by task; shares in per cent."""
    several = len(_tasks(facts)) > 1
    return [
        {
            "outputs": f"{first} against {second}" + (f", {task['name']}" if several else ""),
            "win_rate": format_points(duel["win_rate"]),
            "win_rate_interval": format_points_interval(duel["win_rate_interval"]),
            "controlled": format_points(duel["length_controlled"]),
            "controlled_interval": format_points_interval(duel["length_controlled_interval"]),
            "characters": f"{duel['characters']:+,.0f}",
            "verdicts": f"{duel['verdicts']:,}",
            "draws": f"{duel['draws']:,}",
            "first_shown": _share(duel["first_shown"]),
            "agreement": _share(duel["agreement"]),
            "unread": f"{duel['unread']:,}",
        }
        for task in _tasks(facts)
        for first, second, duel in _win_rate_pairs(task["judged"])
    ]


def judge_sentences(facts: Facts) -> list[str]:
    """Who judged each task, with what tells one way of asking from another."""
    return [
        f"{task.get('title') or task['name']}: verdicts of {task['judged']['judge']}"
        for task in _tasks(facts)
    ]


def direct_preference_sentences(task: Facts) -> Iterator[str]:
    """How the candidate's outputs fare beside the reference's own, where a judge compared them."""
    duel = (task.get("judged") or {}).get("direct")
    if duel:
        yield (
            f"candidate against reference: wins {format_points(duel['win_rate'])} % "
            f"({format_points_interval(duel['win_rate_interval'])}), length-controlled "
            f"{format_points(duel['length_controlled'])} % "
            f"({format_points_interval(duel['length_controlled_interval'])})"
        )


def verdicts_phrase(line: Facts) -> str:
    """What a judge said of an item of the samples; nothing where none was asked."""
    if line.get("judge") is None:
        return ""
    told = [
        f"{side} {_describe_outcomes(line[side]['verdicts'])}"
        for side in ("reference", "candidate")
    ]
    direct = line.get("direct")
    beside = f"; candidate against reference {_describe_outcomes(direct)}" if direct else ""
    return f"{line['judge']}: {', '.join(told)}{beside}"


def _tasks(facts: Facts) -> list[Facts]:
    return [task for task in facts.get("tasks") or [] if task.get("judged")]


def _win_rate_pairs(judged: Facts) -> Iterator[tuple[str, str, Facts]]:
    for side in ("reference", "candidate"):
        if judged.get(side):
            yield side, judged["against"], judged[side]
    if judged.get("direct"):
        yield "candidate", "reference", judged["direct"]


def _share(value: float | None) -> str:
    return NO_VALUE if value is None else format_points(value)


def _describe_outcomes(found: Sequence[Facts]) -> str:
    """Verdicts in a few words: `wins shown first, loses shown second`."""
    return " and ".join(
        f"{OUTCOME_WORDS.get(each['won'], each['won'])} shown {ORDER_WORDS[each['shown_first']]}"
        for each in found
    )
