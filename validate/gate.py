"""Thresholds to verdicts: a figure passes only if its whole interval does.

Nothing but a report's facts is judged, so a report can be judged again without its models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import inf, isfinite
from pathlib import Path
from typing import Any, Literal, TypeVar

from camelpress.core.errors import RecipeProblem
from camelpress.core.report import Check, Verdict
from camelpress.core.yaml import read_yaml
from camelpress.validate.measures import COUNT, MEASURES, find
from camelpress.validate.paired import detectable_loss, holm, loss_interval, loss_p_value
from camelpress.validate.settings import AtLeast, AtMost, Bounds, Gate, TaskBound

Limits = TypeVar("Limits", Bounds, TaskBound)
Interval = tuple[float, float] | None
CONFIDENCE = 0.95
TASK_CHECKS: dict[str, tuple[str, Literal["max", "min"]]] = {  # by what is asked
    "margin": ("accuracy_loss", "max"),
    "significance": ("significant_loss", "min"),
}


@dataclass(frozen=True)
class Question:
    """One check before it is decided."""

    name: str
    part: str | None
    threshold: float
    direction: Literal["max", "min"]

    @property
    def limit(self) -> str:
        """The threshold in words."""
        return f"at {'most' if self.direction == 'max' else 'least'} {self.threshold:g}"

    def verdict(self, low: float, high: float) -> Verdict:
        """Where an interval lies: within the threshold, beyond it, or on both sides."""
        limit = self.threshold
        if self.direction == "min":
            low, high, limit = -high, -low, -limit
        if high <= limit:
            return Verdict.PASS
        return Verdict.FAIL if low > limit else Verdict.INCONCLUSIVE

    def answer(
        self,
        verdict: Verdict,
        estimate: float | None,
        interval: Interval,
        n: int,
        clusters: int,
        why: str,
    ) -> Check:
        """The check, decided."""
        return Check(
            name=self.name,
            part=self.part,
            verdict=verdict,
            estimate=estimate,
            interval=interval,
            threshold=self.threshold,
            direction=self.direction,
            n=n,
            clusters=clusters,
            reason=why,
        )

    def error(self, why: str, *, n: int = 0, clusters: int = 0) -> Check:
        """The check where there is nothing to decide on."""
        return self.answer(Verdict.ERROR, None, None, n, clusters, why)


def read(path: Path) -> Gate:
    """A gate from YAML; a check that is not named keeps its default.

    Raises:
        RecipeProblem: missing, not YAML, an unknown check or an impossible bound.
    """
    return Gate.parse(read_yaml(path), source=str(path))


def judge(facts: Mapping[str, Any], gate: Gate) -> tuple[Check, ...]:
    """Hold each figure that the gate asks for against its bound.

    PASS: the whole 95 % interval is within the bound. FAIL: the whole interval is beyond it.
    INCONCLUSIVE: the interval holds the threshold, more text is needed. ERROR: the report lacks
    the figure, it is no finite number, or no tokens were scored.

    Args:
        facts: of a validation report.
        gate: what is asked of all texts, of the beginnings of windows, of each text and task.
    Raises:
        RecipeProblem: the gate leaves out every check.
    """
    early = facts.get("early") or {}
    checks = [
        *_part(facts, gate, None),
        *_part(early.get("first"), gate.early, f"first {early.get('context', '?')} tokens"),
        *_texts(facts, gate),
        *_tasks(facts, gate),
    ]
    if not checks:
        raise RecipeProblem("the gate holds no check", next_step="name at least one threshold")
    return tuple(checks)


def _questions(bounds: Bounds, part: str | None) -> Iterator[Question]:
    for name in MEASURES:
        match getattr(bounds, name):
            case AtMost(max=threshold):
                yield Question(name, part, threshold, "max")
            case AtLeast(min=threshold):
                yield Question(name, part, threshold, "min")


def _part(facts: Any, bounds: Bounds, part: str | None) -> Iterator[Check]:
    """What is asked of one part of the facts: a figure, its interval and how much it comes from."""
    tokens, pieces = (find(facts, key) or 0 for key in ("tokens", "sequences"))
    for question in _questions(bounds, part):
        measure = MEASURES[question.name]
        found, ends = find(facts, measure.fact), find(facts, measure.interval)
        if not tokens:
            yield question.error("no tokens were scored")
        elif found is None or not isfinite(found):
            fact = measure.fact.replace("/", ".")
            why = f"the report has no {fact}" if found is None else f"{fact} is not finite"
            yield question.error(why, n=tokens, clusters=pieces)
        elif measure.sampled:
            yield _decided(question, float(found), _bounded(ends), tokens, pieces)
        else:
            verdict = question.verdict(float(found), float(found))
            shall = "is" if verdict is Verdict.PASS else "should be"
            told = f"{found:,.0f}" if measure.unit == COUNT else f"{found:.5g}"
            why = f"{told} {shall} {question.limit}"
            yield question.answer(verdict, float(found), None, tokens, pieces, why)


def _bounded(ends: Any) -> Interval:
    if ends is None or any(end is None or not isfinite(end) for end in ends):
        return None
    low, high = ends
    return float(low), float(high)


def _decided(
    question: Question, value: float, interval: Interval, n: int, clusters: int, advice: str = ""
) -> Check:
    verdict = question.verdict(*(interval or (-inf, inf)))
    if interval:
        span = f"{value:.5g} (95 % interval {interval[0]:.5g} to {interval[1]:.5g})"
    elif clusters > 1:
        span = f"{value:.5g}, of which the report has no bounded interval,"
    else:
        span = f"{value:.5g}, from one piece of text and so without an interval,"
    why = {
        Verdict.PASS: f"{span} is {question.limit}",
        Verdict.FAIL: f"{span} should be {question.limit}",
        Verdict.INCONCLUSIVE: f"{span} holds the threshold {question.threshold:g}: "
        + (advice or "give more text"),
    }[verdict]
    return question.answer(verdict, value, interval, n, clusters, why)


def _texts(facts: Mapping[str, Any], gate: Gate) -> Iterator[Check]:
    texts = {text["name"]: text for text in facts.get("texts") or []}
    asked, idle = _fitting(gate.texts, list(texts))
    for name, bounds in asked.items():
        yield from _part(texts[name], bounds, name)
    for pattern in idle:
        for question in _questions(gate.texts[pattern], pattern):
            yield question.error("the report has no text of this name")


def _tasks(facts: Mapping[str, Any], gate: Gate) -> Iterator[Check]:
    tasks = {task["name"]: task for task in facts.get("tasks") or []}
    asked, idle = _fitting(gate.tasks, list(tasks))
    for name, bound in asked.items():
        if bound.margin is not None:
            yield _loss(tasks[name], Question("accuracy_loss", name, bound.margin, "max"))
    family = [name for name, bound in asked.items() if bound.significance is not None]
    p_values = holm([loss_p_value(tasks[name]["lost"], tasks[name]["won"]) for name in family])
    for name, p_value in zip(family, p_values, strict=True):
        threshold = asked[name].significance or 0.0
        question = Question("significant_loss", name, threshold, "min")
        yield _significance(tasks[name], question, p_value, len(family))
    for pattern in idle:
        for name, threshold in gate.tasks[pattern].model_dump(exclude_none=True).items():
            check, direction = TASK_CHECKS[name]
            yield Question(check, pattern, threshold, direction).error(
                "the report has no task of this name"
            )


def _loss(task: Mapping[str, Any], question: Question) -> Check:
    """Non-inferiority: the largest loss that the counts do not contradict is within the margin."""
    n, lost, won = task["n"], task["lost"], task["won"]
    if not n:
        return question.error("no items were answered")
    advice = f"give more items, {_detectable(task, (1 - CONFIDENCE) / 2)}"
    if not task.get("by_count", True):  # marks between right and wrong, or parts of other sizes
        ends = _bounded(task["delta_interval"])
        return _decided(question, -task["delta"], ends and (-ends[1], -ends[0]), n, n, advice)
    interval = loss_interval(n, lost, won, confidence=CONFIDENCE)
    return _decided(question, (lost - won) / n, interval, n, n, advice)


def _significance(
    task: Mapping[str, Any], question: Question, p_value: float, family: int
) -> Check:
    """A veto: whether the candidate loses more items than it wins, and not by accident."""
    n, lost, won = task["n"], task["lost"], task["won"]
    if not n:
        return question.error("no items were answered")
    verdict = question.verdict(p_value, p_value)
    why = f"{lost} items lost and {won} won, p = {p_value:.2g}"
    why += f" among {family} tasks" if family > 1 else ""
    why += (
        f": no significant loss, and {_detectable(task, question.threshold)}"
        if verdict is Verdict.PASS
        else f" is below {question.threshold:g}: a loss that is no accident"
    )
    return question.answer(verdict, p_value, None, n, n, why)


def _detectable(task: Mapping[str, Any], alpha: float) -> str:
    found = detectable_loss(task["n"], (task["lost"] + task["won"]) / task["n"], alpha=alpha)
    if found is None:
        return "on so few no loss would be found four times in five"
    return f"a loss of {100 * found:.2g} % of all items would be found four times in five"


def _fitting(
    patterns: Mapping[str, Limits], names: Sequence[str]
) -> tuple[dict[str, Limits], list[str]]:
    """What is asked of each name, and the patterns that fit none.

    Of two patterns that fit one name and speak of the same figure, the later one wins.
    """
    asked: dict[str, Limits] = {}
    for name in names:
        for pattern, limits in patterns.items():
            if fnmatchcase(name, pattern):
                said = {key: getattr(limits, key) for key in limits.model_fields_set}
                asked[name] = asked[name].model_copy(update=said) if name in asked else limits
    return asked, [each for each in patterns if not any(fnmatchcase(name, each) for name in names)]
