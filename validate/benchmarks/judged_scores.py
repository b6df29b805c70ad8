"""Items that a judge marks: both models' outputs beside a third's, and beside one another.

A mark is the share of an item's verdicts that go to the model's output and not to the third one, so
that such a column has scores, a paired difference and flips as all others have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from camelpress.validate.benchmarks.judge_session import JudgeSession, strip_hashes
from camelpress.validate.benchmarks.task_catalogue import BenchmarkSpec
from camelpress.validate.judge.judge_prompt import OutputPair
from camelpress.validate.judge.pairwise import Preference
from camelpress.validate.judge.win_rate import WinRate, win_rate

Logged = Sequence[Mapping[str, Any]]
Verdicts = Mapping[str, list[Preference]]  # by the id of the pair
SIDES = ("reference", "candidate")
DIRECT = "direct"  # the candidate's outputs beside the reference's


@dataclass(frozen=True)
class JudgeScores:
    """Items of a column with their marks, and what the verdicts come to."""

    reference: Logged
    candidate: Logged
    facts: dict[str, Any]


def score_with_judge(
    arena: JudgeSession, column: BenchmarkSpec, reference: Logged, candidate: Logged
) -> JudgeScores:
    """Let outputs be compared: of each model with the third one's, and with one another.

    Args:
        arena: of the judge.
        column: of which the items are.
        reference, candidate: what lm-evaluation-harness logged of each model, item by item.
    Returns:
        the items that have a mark on both sides.
    Raises:
        RecipeProblem: the annotations lack verdicts and there is no judge, or the budget does not
            suffice.
        EngineProblem: the judge refuses, or says too often what is no verdict.
        Interrupted: it cannot be reached; what it has answered is kept.
    """
    items = [*zip(reference, candidate, strict=True)]
    pairs = [
        _pair(side, number, row, str(row["target"]), twice=column.both_orders)
        for number, item in enumerate(items)
        for side, row in zip(SIDES, item, strict=True)
    ]
    direct = [
        _pair(DIRECT, number, second, _output(first), twice=True)
        for number, (first, second) in enumerate(items)
    ]
    verdicts = _group_by_pair(arena.compare_pairs(pairs, direct))
    marked: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for number, item in enumerate(items):
        own = [verdicts[_id(side, number)] for side in SIDES]
        if all(map(_valid_preferences, own)):
            both = {
                "judge": arena.name,
                DIRECT: _preference_lines(verdicts.get(_id(DIRECT, number), [])),
            }
            for side, row, found in zip(SIDES, item, own, strict=True):
                told = {
                    column.metric: fmean(_valid_preferences(found)),
                    "verdicts": _preference_lines(found),
                }
                marked[side].append({**row, **both, **told})
    title = f"{column.title}, judged by {strip_hashes(arena.name)}"
    judged = {"judge": arena.name, "against": column.baseline, **_win_rates(verdicts)}
    first, second = (marked[side] for side in SIDES)
    return JudgeScores(first, second, {"title": title, "judged": judged})


def _pair(side: str, number: int, row: Mapping[str, Any], other: str, *, twice: bool) -> OutputPair:
    return OutputPair(
        _id(side, number), row["doc"]["instruction"], _output(row), other, both_orders=twice
    )


def _id(side: str, number: int) -> str:
    return f"{side} {number}"


def _output(row: Mapping[str, Any]) -> str:
    return str(row["filtered_resps"][0])


def _group_by_pair(verdicts: Sequence[Preference]) -> Verdicts:
    found: dict[str, list[Preference]] = {}
    for each in verdicts:
        found.setdefault(each.prompt.pair.id, []).append(each)
    return found


def _valid_preferences(verdicts: Sequence[Preference]) -> list[float]:
    return [each.score for each in verdicts if each.score is not None]


def _preference_lines(verdicts: Sequence[Preference]) -> list[dict[str, Any]]:
    return [{"shown_first": each.prompt.candidate_first, "won": each.score} for each in verdicts]


def _win_rates(verdicts: Verdicts) -> dict[str, dict[str, Any] | None]:
    """What the verdicts on each kind of pair come to; None where there are none."""
    kinds: dict[str, list[Preference]] = {side: [] for side in (*SIDES, DIRECT)}
    for name, found in verdicts.items():
        kinds[name.split()[0]] += found
    return {
        kind: _win_rate_facts(win_rate(found)) if found else None for kind, found in kinds.items()
    }


def _win_rate_facts(found: WinRate) -> dict[str, Any]:
    return {
        "pairs": found.win_rate.clusters,
        "verdicts": found.win_rate.n,
        "win_rate": found.win_rate.mean,
        "win_rate_interval": found.win_rate.interval,
        "length_controlled": found.length_controlled.mean,
        "length_controlled_interval": found.length_controlled.interval,
        "characters": found.characters,
        "draws": found.draws,
        "first_shown": found.first_shown,
        "agreement": found.agreement,
        "unread": found.invalid,
    }
