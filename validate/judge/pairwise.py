"""Judges pairs of outputs with stored verdicts and new requests.

Two equal outputs are a draw without a request, as in AlpacaEval.
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

TIE = 1.5  # preference of a draw


@runtime_checkable
class Judge(Protocol):
    """A judge model: a service, or a model in this process."""

    @property
    def name(self) -> str:
        """Returns the identity of the verdicts: model, prompt hash and decoding."""

    def answers(
        self, questions: Sequence[JudgePrompt]
    ) -> Generator[tuple[JudgePrompt, JudgeReply], None, None]:
        """Yields a reply to each question, in order of arrival."""


@dataclass(frozen=True)
class Preference:
    """The verdict on one question."""

    prompt: JudgePrompt
    score: float | None  # 1: candidate wins, 0: it loses, 0.5: draw; None: no verdict


def judge_pairs(
    pairs: Sequence[OutputPair], judge: Judge | None, settings: JudgeSettings
) -> list[Preference]:
    """Returns the verdicts on pairs, in one or both orders, from the annotations and the judge.

    A second run requests only the missing verdicts. Equal questions of several pairs are one
    request.

    Args:
        pairs: pairs with unique ids.
        judge: the judge; None uses stored verdicts only.
        settings: annotations, prices, budget and the tolerated share of unreadable answers.
    Returns:
        The verdicts pair by pair, in the order of `judge_prompts`; stored verdicts without a
        judge may have either order.
    Raises:
        RecipeProblem: The annotations are malformed, or incomplete without a judge, or the budget
            is too low.
        OutputProblem: The annotations are not appendable.
        ToolProblem: The judge rejects requests, or gives too many answers without a verdict.
        Interruption: The judge cannot be reached; its verdicts so far are stored.
    """
    _require_unique_ids(pairs)
    annotations = AnnotationFile(settings.annotations, None if judge is None else judge.name)
    if judge is None:
        return _read_annotated(pairs, annotations)
    prompts = [prompt for pair in pairs for prompt in judge_prompts(pair)]
    open_prompts = [prompt for prompt in prompts if _candidate_score(prompt, annotations) is None]
    requests = [*{_key(prompt): prompt for prompt in open_prompts}.values()]
    if requests:
        cost = estimate_judge_cost(requests, settings)
        note(f"asking {judge.name}: {cost}")
        require_affordable(cost, settings)
        annotations.require_appendable()
        _ask_judge(judge, requests, annotations, max_unread=settings.unread * len(prompts))
    return [Preference(prompt, _candidate_score(prompt, annotations)) for prompt in prompts]


def _ask_judge(
    judge: Judge, prompts: Sequence[JudgePrompt], annotations: AnnotationFile, *, max_unread: float
) -> None:
    """Requests the verdicts and stores each on arrival."""
    unread = 0
    with closing(judge.answers(prompts)) as answers:
        for _ in track(prompts, "pairs judged"):
            prompt, reply = next(answers)
            if (preference := parse_preference(reply.text)) is not None:
                token_counts = {"tokens_in": reply.tokens_in, "tokens_out": reply.tokens_out}
                annotations.add(
                    _key(prompt), float(preference), raw_completion=reply.text, **token_counts
                )
                continue
            unread += 1
            if unread > max_unread:
                raise ToolProblem(
                    f"{judge.name} gave no verdict, {unread} times so far: "
                    f"{escape_controls(reply.text[:80])!r}",
                    next_step="use a judge model that answers 'Output (a)' or 'Output (b)'",
                )


def _read_annotated(pairs: Sequence[OutputPair], annotations: AnnotationFile) -> list[Preference]:
    """Reads the stored verdicts of all pairs, in any order of outputs."""
    verdicts = []
    missing_ids = []
    for pair in pairs:
        pair_verdicts = [
            Preference(prompt, score)
            for prompt in prompts_in_both_orders(pair)
            if (score := _candidate_score(prompt, annotations)) is not None
        ]
        verdicts += (
            pair_verdicts
            if pair.both_orders and pair.candidate != pair.reference
            else pair_verdicts[:1]
        )
        missing_ids += [] if pair_verdicts else [pair.id]
    if missing_ids:
        raise RecipeProblem(
            f"{annotations.path} has no verdict on {len(missing_ids)} of {len(pairs)} pairs "
            f"(the first is {missing_ids[0]})",
            next_step="give annotations of these outputs, or the url and the model of a judge",
        )
    return verdicts


def _candidate_score(prompt: JudgePrompt, annotations: AnnotationFile) -> float | None:
    if prompt.pair.candidate == prompt.pair.reference:
        preference: float | None = TIE
    else:
        preference = annotations.preference(_key(prompt))
    if preference is None:
        return None
    return 2 - preference if prompt.candidate_first else preference - 1


def _key(prompt: JudgePrompt) -> AnnotationKey:
    return (prompt.pair.instruction, *prompt.outputs)


def _require_unique_ids(pairs: Sequence[OutputPair]) -> None:
    ids = {pair.id for pair in pairs}
    if len(ids) < len(pairs):
        raise RecipeProblem("two pairs have the same id", next_step="give each pair a unique id")
