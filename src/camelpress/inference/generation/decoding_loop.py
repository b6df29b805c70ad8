"""Decoding loop: prefill, sample, stop and step, for many prompts of tasks or one of a chat.

A `Decoder` gives logits, a `Sampler` chooses tokens, and a `StopRule` ends rows. Tasks read
finished completions: `generate_batch` implements `generate_until` of lm-evaluation-harness. A chat
reads each token from `decode_prompts`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from camelpress.core.errors import NumericsProblem
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.inference.generation.decoder import Decoder, Logits
from camelpress.inference.generation.prefixes import group_by_prefix
from camelpress.inference.generation.sampling import (
    GreedySampler,
    InversionSampler,
    Sampler,
    SamplingParams,
    SequenceState,
    TokenPrompt,
)
from camelpress.inference.generation.stop_rule import FinishReason, StopRule

REFILL_SHARE = 7 / 8  # share of rows; new prompts are read once at most so many are active
LONG_PROMPT_TOKENS = 512  # tokens from which a prompt is cached as a prefix


class Generation(NamedTuple):
    """The completion of a prompt."""

    prompt_index: int  # index of the prompt
    text: str


def generate_batch(
    decoder: Decoder,
    prompts: Sequence[TokenPrompt],
    sampling: SamplingParams,
    tokenizer: Tokenizer,
    *,
    ends: frozenset[int],
    positions: int,
    rows: int,
    tokens: int,
) -> Iterator[Generation]:
    """Yields the completions of prompts as they finish, each cut before its first stop string.

    A finished row makes room for the next prompt. The completion of a row does not depend on other
    rows, except for the last bits of its logits.

    Args:
        decoder: decoder of the model.
        prompts: at least one prompt, each shorter than the positions.
        sampling: sampling parameters and stop conditions.
        tokenizer: tokenizer of the model.
        ends: ids that end a completion.
        positions: positions of the model; the last one ends a completion.
        rows: largest number of rows.
        tokens: largest number of tokens in all rows, without prefixes; one row always runs.
    Raises:
        NumericsProblem: logits are not finite.
    """
    stop_rule = StopRule(sampling, tokenizer, ends, positions)
    sampler = InversionSampler(sampling) if sampling.temperature else GreedySampler()
    for row, reason in decode_prompts(
        decoder, prompts, sampler, stop_rule, rows=rows, tokens=tokens
    ):
        if reason is not None:
            yield Generation(row.index, stop_rule.cut_text(row.prompt.ids, row.tokens))


def decode_prompts(
    decoder: Decoder,
    prompts: Sequence[TokenPrompt],
    sampler: Sampler,
    stop_rule: StopRule,
    *,
    rows: int,
    tokens: int,
) -> Iterator[tuple[SequenceState, FinishReason | None]]:
    """Yields a row after each of its tokens, with the reason for its end or None.

    A finished row makes room for the next prompt.

    Args:
        decoder: decoder of the model.
        prompts: at least one prompt, each shorter than the positions.
        sampler: choice of the next tokens.
        stop_rule: end of each row.
        rows: largest number of rows.
        tokens: largest number of tokens in all rows, without prefixes; one row always runs.
    Raises:
        NumericsProblem: logits are not finite.
    """
    queue = group_by_prefix([prompt.ids for prompt in prompts], long_tokens=LONG_PROMPT_TOKENS)
    row_tokens = max(len(text.suffix) for _, text in queue) + stop_rule.max_tokens
    rows = max(1, min(rows, len(queue), tokens // row_tokens))
    decoder.reset(rows, row_tokens)
    active_rows: list[SequenceState] = []
    while queue or active_rows:
        if queue and len(active_rows) <= rows * REFILL_SHARE:
            batch, queue = queue[: rows - len(active_rows)], queue[rows - len(active_rows) :]
            new_rows = [SequenceState(index, prompts[index]) for index, _ in batch]
            active_rows += new_rows
            logits = decoder.prefill([text for _, text in batch])
        else:
            new_rows = active_rows
            logits = decoder.step([row.tokens[-1] for row in active_rows])
        _require_finite(logits)
        for row, token in zip(new_rows, sampler.sample(logits, new_rows), strict=True):
            row.tokens.append(token)
        for number in reversed(range(len(active_rows) - len(new_rows), len(active_rows))):
            row = active_rows[number]
            reason = stop_rule.finish_reason(row.prompt.ids, row.tokens)
            yield row, reason
            if reason is not None:
                decoder.drop_row(number)
                active_rows[number] = active_rows[-1]
                active_rows.pop()


def _require_finite(logits: Logits) -> None:
    if not bool(logits.isfinite().all()):
        raise NumericsProblem(
            "a completion has logits that are not finite",
            next_step="inspect the model's weights, or compute in a wider dtype",
        )
