"""Estimates the tokens and the price of judging before any request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from camelpress.core.errors import RecipeProblem
from camelpress.validate.judge.judge_prompt import JudgePrompt
from camelpress.validate.judge.judge_settings import JudgeSettings

BYTES_PER_TOKEN = 3  # conservative; English text has about 4.5 bytes per token


@dataclass(frozen=True)
class JudgeCost:
    """The open questions with their maximum tokens and price in USD, retries excluded."""

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
    prompts: Sequence[JudgePrompt], settings: JudgeSettings, *, extra_tokens: int = 0
) -> JudgeCost:
    """Estimates the cost of questions.

    Args:
        prompts: the questions.
        settings: prices and maximum answer length.
        extra_tokens: input tokens beyond the text of the questions.
    Returns:
        Token counts, and the price in USD if both prices are set.
    """
    prompt_bytes = sum(
        len(message["content"].encode("utf-8", "replace"))
        for question in prompts
        for message in question.messages()
    )
    tokens_in = -(-prompt_bytes // BYTES_PER_TOKEN) + extra_tokens
    tokens_out = len(prompts) * settings.max_tokens
    dollars = None
    if settings.price_in is not None and settings.price_out is not None:
        dollars = (tokens_in * settings.price_in + tokens_out * settings.price_out) / 1e6
    return JudgeCost(len(prompts), tokens_in, tokens_out, dollars)


def require_affordable(cost: JudgeCost, settings: JudgeSettings) -> None:
    """Checks an estimate against the budget, if there is one.

    Raises:
        RecipeProblem: The estimate exceeds the budget, or a price is missing.
    """
    if settings.budget is None:
        return
    if cost.dollars is None:
        raise RecipeProblem("a budget needs prices", next_step="give both prices of the judge")
    if cost.dollars > settings.budget:
        raise RecipeProblem(
            f"the judge would be asked {cost}, and the budget is ${settings.budget:,.2f}",
            next_step="raise the budget, judge fewer items, or let another model judge",
        )
