"""Which of two outputs is better, for many pairs: asked, or looked up, and kept.

Two outputs that are the same are a draw, and nobody is asked. That is AlpacaEval's rule, too.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from camelpress.core.errors import RecipeProblem, ToolProblem
from camelpress.core.progress import note, track
from camelpress.core.runtime.terminal_text import escape_controls
from camelpress.validate.judge.annotations import AnnotationFile, AnnotationKey
from camelpress.validate.judge.chat_completion import JudgeReply
from camelpress.validate.judge.judge_cost import estimate_judge_cost, require_affordable
from camelpress.validate.judge.judge_prompt import (
    JudgePrompt,
    OutputPair,
    judge_prompts,
    parse_preference,
    prompts_in_both_orders,
)
from camelpress.validate.judge.judge_settings import JudgeSettings

TIE = 1.5


@runtime_checkable
class Judge(Protocol):
    """Whoever answers: a service, or a model in this process."""

    @property
    def name(self) -> str:
        """What tells its verdicts from those of others: model, wording, way of decoding."""

    def answers(
        self, questions: Sequence[JudgePrompt]
    ) -> Generator[tuple[JudgePrompt, JudgeReply], None, None]:
        """A reply to each question, in any order, as soon as it is there."""


@dataclass(frozen=True)
class Preference:
    """What came of a question."""

    prompt: JudgePrompt
    score: float | None  # by the candidate: 1, 0, or between; None: the reply named neither output


def judge_pairs(
    pairs: Sequence[OutputPair], judge: Judge | None, settings: JudgeSettings
) -> list[Preference]:
    """The verdict on each pair, in one order or in both, from the annotations and the judge.

    A second run asks only what the first one has no verdict of. The same question is asked once,
    in however many pairs it comes.

    Args:
        pairs: whose ids are their own.
        judge: None if the annotations hold everything.
    Returns:
        pair by pair, as `questions` orders them; stored verdicts alone may be of either order.
    Raises:
        RecipeProblem: the annotations are malformed, or lack pairs and there is no judge, or the
            budget does not suffice.
        OutputProblem: nothing can be added to the annotations.
        EngineProblem: the judge refuses, or says too often what is no verdict.
        Interrupted: it cannot be reached; what it has answered is kept.
    """
    _require_own_ids(pairs)
    annotations = AnnotationFile(settings.annotations, None if judge is None else judge.name)
    if judge is None:
        return _read_annotated(pairs, annotations)
    wanted = [question for pair in pairs for question in judge_prompts(pair)]
    unknown = [question for question in wanted if _candidate_score(question, annotations) is None]
    asked = [*{_key(question): question for question in unknown}.values()]
    if asked:
        found = estimate_judge_cost(asked, settings)
        note(f"asking {judge.name}: {found}")
        require_affordable(found, settings)
        annotations.require_appendable()
        _ask_judge(judge, asked, annotations, borne=settings.unread * len(wanted))
    return [Preference(question, _candidate_score(question, annotations)) for question in wanted]


def _ask_judge(
    judge: Judge, asked: Sequence[JudgePrompt], annotations: AnnotationFile, *, borne: float
) -> None:
    """Put the questions, and keep each verdict as it comes."""
    unread = 0
    with closing(judge.answers(asked)) as answers:
        for _ in track(asked, "pairs judged"):
            question, reply = next(answers)
            if (preference := parse_preference(reply.text)) is not None:
                took = {"tokens_in": reply.tokens_in, "tokens_out": reply.tokens_out}
                annotations.add(
                    _key(question), float(preference), raw_completion=reply.text, **took
                )
                continue
            unread += 1
            if unread > borne:
                raise ToolProblem(
                    f"{judge.name} answers what is no verdict, {unread} times so far: "
                    f"{escape_controls(reply.text[:80])!r}",
                    next_step="let a model judge that answers 'Output (a)' or 'Output (b)'",
                )


def _read_annotated(pairs: Sequence[OutputPair], annotations: AnnotationFile) -> list[Preference]:
    """What the annotations hold, in whichever orders they do."""
    found = []
    missing = []
    for pair in pairs:
        told = [
            Preference(question, won)
            for question in prompts_in_both_orders(pair)
            if (won := _candidate_score(question, annotations)) is not None
        ]
        found += told if pair.both_orders and pair.candidate != pair.reference else told[:1]
        missing += [] if told else [pair.id]
    if missing:
        raise RecipeProblem(
            f"{annotations.path} has no verdict on {len(missing)} of {len(pairs)} pairs "
            f"(the first is {missing[0]})",
            next_step="give annotations of these outputs, or the url and the model of a judge",
        )
    return found


def _candidate_score(question: JudgePrompt, annotations: AnnotationFile) -> float | None:
    if question.pair.candidate == question.pair.reference:
        preference: float | None = TIE
    else:
        preference = annotations.preference(_key(question))
    if preference is None:
        return None
    return 2 - preference if question.candidate_first else preference - 1


def _key(question: JudgePrompt) -> AnnotationKey:
    return (question.pair.instruction, *question.outputs)


def _require_own_ids(pairs: Sequence[OutputPair]) -> None:
    ids = {pair.id for pair in pairs}
    if len(ids) < len(pairs):
        raise RecipeProblem("two pairs have the same id", next_step="give each its own")
