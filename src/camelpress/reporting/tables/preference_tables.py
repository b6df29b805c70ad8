"""Renders the verdicts of a judge as rows of a table and as sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from camelpress.reporting.facts.task_facts import JudgementFacts, PreferenceFacts, TaskFacts
from camelpress.reporting.facts.validation_facts import ValidateFacts
from camelpress.reporting.number_format import format_count, format_points, format_points_interval

Row = dict[str, Any]
ORDER_WORDS = {True: "first", False: "second"}
OUTCOME_WORDS = {1.0: "wins", 0.0: "loses", 0.5: "draws", None: "has no verdict"}


def preference_rows(facts: ValidateFacts) -> list[Row]:
    """Builds a row per pair of compared outputs, task by task; shares are percentages."""
    judgements = _judgements(facts)
    has_tasks = len(judgements) > 1
    return [
        {
            "outputs": f"{first} against {second}" + (f", {task.name}" if has_tasks else ""),
            "win_rate": format_points(duel.win_rate),
            "win_rate_interval": format_points_interval(duel.win_rate_interval),
            "controlled": format_points(duel.length_controlled),
            "controlled_interval": format_points_interval(duel.length_controlled_interval),
            "characters": format_count(duel.characters, sign=True),
            "verdicts": format_count(duel.verdicts),
            "draws": format_count(duel.draws),
            "first_shown": format_points(duel.first_shown),
            "agreement": format_points(duel.agreement),
            "unread": format_count(duel.unread),
        }
        for task, judgement in judgements
        for first, second, duel in _win_rate_pairs(judgement)
    ]


def judge_sentences(facts: ValidateFacts) -> list[str]:
    """States the judge of each task, with the hashes of its prompts."""
    return [
        f"{task.label}: verdicts of {judgement.judge}" for task, judgement in _judgements(facts)
    ]


def direct_preference_sentences(task: TaskFacts) -> Iterator[str]:
    """States the candidate's win rate against the reference, if a judge compared them."""
    duel = task.judged and task.judged.direct
    if duel:
        yield (
            f"candidate against reference: wins {format_points(duel.win_rate)} % "
            f"({format_points_interval(duel.win_rate_interval)}), length-controlled "
            f"{format_points(duel.length_controlled)} % "
            f"({format_points_interval(duel.length_controlled_interval)})"
        )


def verdicts_phrase(line: Mapping[str, Any]) -> str:
    """Describes the verdicts on one item, or returns "" without a judge."""
    if line.get("judge") is None:
        return ""
    sides = [
        f"{side} {_describe_outcomes(line[side]['verdicts'])}"
        for side in ("reference", "candidate")
    ]
    direct = line.get("direct")
    beside = f"; candidate against reference {_describe_outcomes(direct)}" if direct else ""
    return f"{line['judge']}: {', '.join(sides)}{beside}"


def _judgements(facts: ValidateFacts) -> list[tuple[TaskFacts, JudgementFacts]]:
    return [(task, task.judged) for task in facts.tasks if task.judged]


def _win_rate_pairs(judgement: JudgementFacts) -> Iterator[tuple[str, str, PreferenceFacts]]:
    if judgement.reference:
        yield "reference", judgement.against, judgement.reference
    if judgement.candidate:
        yield "candidate", judgement.against, judgement.candidate
    if judgement.direct:
        yield "candidate", "reference", judgement.direct


def _describe_outcomes(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """Joins verdicts into a phrase: `wins shown first and loses shown second`."""
    return " and ".join(
        f"{OUTCOME_WORDS.get(verdict['won'], verdict['won'])} "
        f"shown {ORDER_WORDS[verdict['shown_first']]}"
        for verdict in verdicts
    )
