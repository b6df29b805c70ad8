"""What asking a judge takes, told before anybody is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from camelpress.core.errors import RecipeProblem
from camelpress.validate.judge.judge_prompt import JudgePrompt
from camelpress.validate.judge.judge_settings import JudgeSettings

BYTES_PER_TOKEN = 3  # of English some 4.5; an estimate should not be too low


@dataclass(frozen=True)
class JudgeCost:
    """What is still to be asked, and what that takes at most, repetitions apart."""

    questions: int
    tokens_in: int
    tokens_out: int
    dollars: float | None

    def __str__(self) -> str:
        cost = "" if self.dollars is None else f", at most ${self.dollars:,.2f}"
        return (
            f"{self.questions:,} questions, about {self.tokens_in:,} tokens to read and at most "
            f"{self.tokens_out:,} to write{cost}"
        )


def estimate_judge_cost(
    asked: Sequence[JudgePrompt], settings: JudgeSettings, *, more: int = 0
) -> JudgeCost:
    """What it takes to ask these questions.

    Args:
        asked: the questions.
        settings: prices and length of an answer.
        more: tokens to read that are not in the questions yet.
    """
    size = sum(
        len(message["content"].encode("utf-8", "replace"))
        for question in asked
        for message in question.messages()
    )
    tokens_in = -(-size // BYTES_PER_TOKEN) + more
    tokens_out = len(asked) * settings.max_tokens
    dollars = None
    if settings.price_in is not None and settings.price_out is not None:
        dollars = (tokens_in * settings.price_in + tokens_out * settings.price_out) / 1e6
    return JudgeCost(len(asked), tokens_in, tokens_out, dollars)


def require_affordable(found: JudgeCost, settings: JudgeSettings) -> None:
    """See that a budget, where there is one, suffices.

    Raises:
        RecipeProblem: it does not, or there are no prices.
    """
    if settings.budget is None:
        return
    if found.dollars is None:
        raise RecipeProblem("a budget needs prices", next_step="give both prices of the judge")
    if found.dollars > settings.budget:
        raise RecipeProblem(
            f"the judge would be asked {found}, and the budget is ${settings.budget:,.2f}",
            next_step="raise the budget, judge fewer items, or let another model judge",
        )
