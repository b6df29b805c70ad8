"""Completes many prompts at once: greedy decoding, or sampling with a seed per row.

Implements `generate_until` of lm-evaluation-harness on the logits of a `Decoder`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from camelpress.core.errors import NumericsProblem, RecipeProblem
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.inference.generation.decoder import Decoder, Logits
from camelpress.inference.generation.prefixes import group_by_prefix

LENGTH_KWARGS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
DEFAULT_MAX_TOKENS = 256  # tokens; default of lm-evaluation-harness
BLANK_LINE = "\n\n"
MAX_TOKENS_PER_CHARACTER = 4  # largest number of tokens per character
REFILL_SHARE = 7 / 8  # share of rows; new prompts are read once at most so many are active
TOP_P_CANDIDATES = 256  # likeliest tokens searched for top_p before all tokens are sorted
LONG_PROMPT_TOKENS = 512  # tokens from which a prompt is cached as a prefix
TOP_P_MARGIN = 1e-3  # required excess of the candidates' mass over top_p


@dataclass(frozen=True)
class SamplingParams:
    """Sampling parameters and stop conditions of a completion."""

    stop: tuple[str, ...]
    max_tokens: int  # largest number of new tokens
    temperature: float  # 0 for greedy decoding
    top_p: float
    stop_at_paragraph: bool = False  # end after the first paragraph, without a cut

    @classmethod
    def of(cls, kwargs: Mapping[str, Any], task: str | None) -> SamplingParams:
        """Reads the generation arguments of a task of lm-evaluation-harness.

        Raises:
            RecipeProblem: an argument is not supported, such as beam search.
        """
        max_tokens = max_new_tokens(kwargs)
        rest = {name: value for name, value in kwargs.items() if name not in LENGTH_KWARGS}
        stops = rest.pop("until", None) or []
        temperature = float(rest.pop("temperature", 0.0) or 0.0)
        is_sampled = rest.pop("do_sample", temperature > 0)
        top_p = float(rest.pop("top_p", 1.0))
        unknown = {name: value for name, value in rest.items() if value not in (None, False)}
        if unknown or (is_sampled and not temperature):
            names = ", ".join(f"{name} {value}" for name, value in unknown.items())
            raise RecipeProblem(
                f"the task {task} asks for completions with "
                f"{names or 'samples at temperature 0'}, which is not supported",
                next_step="leave it out",
            )
        return cls(
            stop=(stops,) if isinstance(stops, str) else tuple(stops),
            max_tokens=max_tokens,
            temperature=temperature if is_sampled else 0.0,
            top_p=top_p,
        )


def max_new_tokens(kwargs: Mapping[str, Any]) -> int:
    """Returns the largest number of new tokens from the generation arguments of a task."""
    lengths = (kwargs.get(name) for name in LENGTH_KWARGS)
    return int(next((length for length in lengths if length is not None), DEFAULT_MAX_TOKENS))


class TokenPrompt(NamedTuple):
    """A prompt, and the seed of its samples."""

    ids: list[int]
    seed: str


@dataclass
class _SequenceState:
    """A row in progress."""

    index: int  # index of the prompt
    prompt: TokenPrompt
    tokens: list[int] = field(default_factory=list)


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
    queue = group_by_prefix([prompt.ids for prompt in prompts], long_tokens=LONG_PROMPT_TOKENS)
    row_tokens = max(len(text.suffix) for _, text in queue) + sampling.max_tokens
    rows = max(1, min(rows, len(queue), tokens // row_tokens))
    decoder.reset(rows, row_tokens)
    active_rows: list[_SequenceState] = []
    while queue or active_rows:
        if queue and len(active_rows) <= rows * REFILL_SHARE:
            batch, queue = queue[: rows - len(active_rows)], queue[rows - len(active_rows) :]
            new_rows = [_SequenceState(index, prompts[index]) for index, _ in batch]
            active_rows += new_rows
            logits = decoder.prefill([text for _, text in batch])
        else:
            new_rows = active_rows
            logits = decoder.step([row.tokens[-1] for row in active_rows])
        for row, token in zip(new_rows, _sample_tokens(logits, new_rows, sampling), strict=True):
            row.tokens.append(token)
        for number in reversed(range(len(active_rows) - len(new_rows), len(active_rows))):
            row = active_rows[number]
            text = stop_rule.text(row.prompt.ids, row.tokens)
            if text is not None:
                yield Generation(row.index, text)
                decoder.drop_row(number)
                active_rows[number] = active_rows[-1]
                active_rows.pop()


class StopRule:
    """Decides the end of a completion, and cuts its text."""

    def __init__(
        self, sampling: SamplingParams, tokenizer: Tokenizer, ends: frozenset[int], positions: int
    ) -> None:
        self._sampling = sampling
        self._tokenizer = tokenizer
        self._ends = ends
        self._positions = positions
        max_stop_characters = max(len(stop) for stop in (BLANK_LINE, *sampling.stop))
        self._tail = (
            MAX_TOKENS_PER_CHARACTER * max_stop_characters + 1
        )  # tokens to search for a new stop

    def text(self, prompt: Sequence[int], tokens: Sequence[int]) -> str | None:
        """Returns the text of a finished completion, or None if it continues."""
        is_full = len(tokens) >= self._sampling.max_tokens
        is_full = is_full or len(prompt) + len(tokens) >= self._positions
        if not (is_full or tokens[-1] in self._ends or self._stops(prompt, tokens)):
            return None
        return self.cut_text(prompt, tokens)

    def cut_text(self, prompt: Sequence[int], tokens: Sequence[int]) -> str:
        """Returns the text of the tokens up to the first stop string."""
        text = self._decode_text(prompt, [token for token in tokens if token not in self._ends])
        cuts = [text.find(stop) for stop in self._sampling.stop if stop]
        return text[: min((cut for cut in cuts if cut >= 0), default=len(text))]

    def _stops(self, prompt: Sequence[int], tokens: Sequence[int]) -> bool:
        stops, paragraph = self._sampling.stop, self._sampling.stop_at_paragraph
        if not (stops or paragraph):
            return False
        tail = self._tokenizer.decode_text([*tokens[-self._tail :]])
        if (
            paragraph
            and BLANK_LINE in tail
            and BLANK_LINE in self._decode_text(prompt, tokens).lstrip()
        ):
            return True
        return any(stop and stop in tail for stop in stops)

    def _decode_text(self, prompt: Sequence[int], tokens: Sequence[int]) -> str:
        """Returns the text of the tokens after the prompt, with a leading space."""
        before = [*prompt[-1:]]
        return self._tokenizer.decode_text([*before, *tokens])[
            len(self._tokenizer.decode_text(before)) :
        ]


def _sample_tokens(
    logits: Logits, rows: Sequence[_SequenceState], sampling: SamplingParams
) -> Iterator[int]:
    if not bool(logits.isfinite().all()):
        raise NumericsProblem(
            "a completion has logits that are not finite",
            next_step="inspect the model's weights, or compute in a wider dtype",
        )
    if not sampling.temperature:
        yield from logits.argmax(dim=-1).tolist()
        return
    probabilities = (logits / sampling.temperature).softmax(dim=-1)
    candidates, order = probabilities.topk(min(TOP_P_CANDIDATES, probabilities.shape[1]))
    is_enough = (candidates.sum(dim=-1) > sampling.top_p + TOP_P_MARGIN).tolist()
    for number, row in enumerate(rows):
        if is_enough[number]:
            yield _sample_top_p(candidates[number], order[number], row, sampling.top_p)
        else:
            all_tokens = probabilities[number].sort(descending=True, stable=True)
            yield _sample_top_p(all_tokens.values, all_tokens.indices, row, sampling.top_p)


def _sample_top_p(
    probabilities: Float32[Tensor, " some"],
    order: Int64[Tensor, " some"],
    row: _SequenceState,
    top_p: float,
) -> int:
    """Samples a token by inversion of the distribution, the likeliest tokens first."""
    before = probabilities.cumsum(dim=-1) - probabilities
    mass = probabilities.masked_fill(before >= top_p, 0.0).double().cumsum(dim=-1).cpu()
    target = random.Random(f"{row.prompt.seed} {len(row.tokens)}").random() * mass[-1]
    index = int(torch.searchsorted(mass, target, right=True))
    return int(order[min(index, len(mass) - 1)])
