"""Scores items with a judge: both models' outputs against a baseline, and against each other.

The score of an item is the share of its verdicts for the model's output over the baseline's. Judged
columns thus have scores, a paired difference and flips like all others.
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
Verdicts = Mapping[str, list[Preference]]  # by pair id
SIDES = ("reference", "candidate")
DIRECT = "direct"  # candidate's outputs against the reference's


@dataclass(frozen=True)
class JudgeScores:
    """Judged items of both models with their scores, and the win rates."""

    reference: Logged
    candidate: Logged
    facts: dict[str, Any]


def score_with_judge(
    session: JudgeSession, spec: BenchmarkSpec, reference: Logged, candidate: Logged
) -> JudgeScores:
    """Judges the outputs of each model against the baseline, and against each other.

    Args:
        session: session of the judge.
        spec: specification of the task.
        reference, candidate: samples of each model, logged by lm-evaluation-harness.
    Returns:
        The items with a score for both models.
    Raises:
        RecipeProblem: Verdicts are missing without a judge, or the budget is too low.
        ToolProblem: The judge rejects requests, or gives too many answers without a verdict.
        Interruption: The judge cannot be reached; its verdicts so far are stored.
    """
    items = [*zip(reference, candidate, strict=True)]
    pairs = [
        _pair(side, number, row, str(row["target"]), both_orders=spec.both_orders)
        for number, item in enumerate(items)
        for side, row in zip(SIDES, item, strict=True)
    ]
    direct = [
        _pair(DIRECT, number, second, _output(first), both_orders=True)
        for number, (first, second) in enumerate(items)
    ]
    verdicts = _group_by_pair(session.compare_pairs(pairs, direct))
    scored_rows: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for number, item in enumerate(items):
        item_verdicts = [verdicts[_id(side, number)] for side in SIDES]
        if all(map(_valid_preferences, item_verdicts)):
            shared_fields = {
                "judge": session.name,
                DIRECT: _preference_lines(verdicts.get(_id(DIRECT, number), [])),
            }
            for side, row, row_verdicts in zip(SIDES, item, item_verdicts, strict=True):
                score_fields = {
                    spec.metric: fmean(_valid_preferences(row_verdicts)),
                    "verdicts": _preference_lines(row_verdicts),
                }
                scored_rows[side].append({**row, **shared_fields, **score_fields})
    title = f"{spec.title}, judged by {strip_hashes(session.name)}"
    judge_facts = {"judge": session.name, "against": spec.baseline, **_win_rates(verdicts)}
    first, second = (scored_rows[side] for side in SIDES)
    return JudgeScores(first, second, {"title": title, "judged": judge_facts})


def _pair(
    side: str, number: int, row: Mapping[str, Any], baseline_output: str, *, both_orders: bool
) -> OutputPair:
    return OutputPair(
        _id(side, number),
        row["doc"]["instruction"],
        _output(row),
        baseline_output,
        both_orders=both_orders,
    )


def _id(side: str, number: int) -> str:
    return f"{side} {number}"


def _output(row: Mapping[str, Any]) -> str:
    return str(row["filtered_resps"][0])


def _group_by_pair(verdicts: Sequence[Preference]) -> Verdicts:
    groups: dict[str, list[Preference]] = {}
    for verdict in verdicts:
        groups.setdefault(verdict.prompt.pair.id, []).append(verdict)
    return groups


def _valid_preferences(verdicts: Sequence[Preference]) -> list[float]:
    return [verdict.score for verdict in verdicts if verdict.score is not None]


def _preference_lines(verdicts: Sequence[Preference]) -> list[dict[str, Any]]:
    return [
        {"shown_first": verdict.prompt.candidate_first, "won": verdict.score}
        for verdict in verdicts
    ]


def _win_rates(verdicts: Verdicts) -> dict[str, dict[str, Any] | None]:
    """Computes the win rates of each kind of pair; None for a kind without verdicts."""
    kinds: dict[str, list[Preference]] = {side: [] for side in (*SIDES, DIRECT)}
    for name, pair_verdicts in verdicts.items():
        kinds[name.split()[0]] += pair_verdicts
    return {
        kind: _win_rate_facts(win_rate(pair_verdicts)) if pair_verdicts else None
        for kind, pair_verdicts in kinds.items()
    }


def _win_rate_facts(rates: WinRate) -> dict[str, Any]:
    return {
        "pairs": rates.win_rate.clusters,
        "verdicts": rates.win_rate.n,
        "win_rate": rates.win_rate.mean,
        "win_rate_interval": rates.win_rate.interval,
        "length_controlled": rates.length_controlled.mean,
        "length_controlled_interval": rates.length_controlled.interval,
        "characters": rates.characters,
        "draws": rates.draws,
        "first_shown": rates.first_shown,
        "agreement": rates.agreement,
        "unread": rates.invalid,
    }
