"""Completions of many prompts at once: the likeliest tokens, or tokens drawn by a seed of each row.

What lm-evaluation-harness asks for (`generate_until`), made of the logits that an engine gives for
every row that still goes on (`speakers.py`).
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
DEFAULT_MAX_TOKENS = 256  # of lm-evaluation-harness, where a task does not say
BLANK_LINE = "\n\n"
MAX_TOKENS_PER_CHARACTER = 4  # tokens that one character takes at most
REFILL_SHARE = 7 / 8  # of the rows: with fewer, more prompts are read
TOP_P_CANDIDATES = (
    256  # tokens that have all the mass that counts, nearly always: sorting all takes long
)
LONG_PROMPT_TOKENS = 512  # tokens of a prompt that is kept by itself
TOP_P_MARGIN = 1e-3  # by which theirs has to exceed it


@dataclass(frozen=True)
class SamplingParams:
    """How a completion is made and where it ends."""

    stop: tuple[str, ...]
    max_tokens: int  # tokens
    temperature: float  # 0: the likeliest token, always
    top_p: float
    stop_at_paragraph: bool = False  # ends with the first paragraph, and is not cut

    @classmethod
    def of(cls, asked: Mapping[str, Any], task: str | None) -> SamplingParams:
        """What a task of lm-evaluation-harness asks for.

        Raises:
            RecipeProblem: something that is not done here, such as beams.
        """
        most = max_new_tokens(asked)
        left = {name: value for name, value in asked.items() if name not in LENGTH_KWARGS}
        stops = left.pop("until", None) or []
        temperature = float(left.pop("temperature", 0.0) or 0.0)
        draws = left.pop("do_sample", temperature > 0)
        top_p = float(left.pop("top_p", 1.0))
        unknown = {name: value for name, value in left.items() if value not in (None, False)}
        if unknown or (draws and not temperature):
            named = ", ".join(f"{name} {value}" for name, value in unknown.items())
            raise RecipeProblem(
                f"the task {task} asks for completions with "
                f"{named or 'draws at temperature 0'}, which is not done here",
                next_step="leave it out",
            )
        return cls(
            stop=(stops,) if isinstance(stops, str) else tuple(stops),
            max_tokens=most,
            temperature=temperature if draws else 0.0,
            top_p=top_p,
        )


def max_new_tokens(asked: Mapping[str, Any]) -> int:
    """Tokens that a completion has at most, by what a task of lm-evaluation-harness asks for."""
    lengths = (asked.get(name) for name in LENGTH_KWARGS)
    return int(next((each for each in lengths if each is not None), DEFAULT_MAX_TOKENS))


class TokenPrompt(NamedTuple):
    """What is to be completed, and the seed of its draws."""

    ids: list[int]
    seed: str


@dataclass
class _SequenceState:
    place: int
    prompt: TokenPrompt
    tokens: list[int] = field(default_factory=list)


class Generation(NamedTuple):
    """What a prompt was completed with."""

    prompt_index: int  # of the prompt
    text: str


def generate_batch(
    engine: Decoder,
    prompts: Sequence[TokenPrompt],
    decoding: SamplingParams,
    tokenizer: Tokenizer,
    *,
    ends: frozenset[int],
    positions: int,
    rows: int,
    tokens: int,
) -> Iterator[Generation]:
    """The completions of prompts as they end, each cut before the first stop.

    What ends makes room for the next prompt. What a row is completed with does not depend on the
    others, but for the last bits of its logits.

    Args:
        engine: of the model.
        prompts: at least one, each shorter than the positions.
        decoding: how tokens are chosen, and where a completion ends.
        tokenizer: of the model.
        ends: ids that end a completion.
        positions: of the model; a completion ends at the last one.
        rows: completions side by side, at most.
        tokens: of all of them together, their common beginnings aside, at most; one goes on always.
    Raises:
        NumericsProblem: logits that are not finite.
    """
    ending = StopRule(decoding, tokenizer, ends, positions)
    waiting = group_by_prefix([prompt.ids for prompt in prompts], long=LONG_PROMPT_TOKENS)
    room = max(len(text.suffix) for _, text in waiting) + decoding.max_tokens
    rows = max(1, min(rows, len(waiting), tokens // room))
    engine.reset(rows, room)
    going: list[_SequenceState] = []
    while waiting or going:
        if waiting and len(going) <= rows * REFILL_SHARE:
            some, waiting = waiting[: rows - len(going)], waiting[rows - len(going) :]
            new = [_SequenceState(place, prompts[place]) for place, _ in some]
            going += new
            logits = engine.prefill([text for _, text in some])
        else:
            new = going
            logits = engine.step([row.tokens[-1] for row in going])
        for row, token in zip(new, _sample_tokens(logits, new, decoding), strict=True):
            row.tokens.append(token)
        for number in reversed(range(len(going) - len(new), len(going))):
            row = going[number]
            said = ending.text(row.prompt.ids, row.tokens)
            if said is not None:
                yield Generation(row.place, said)
                engine.drop_row(number)
                going[number] = going[-1]
                going.pop()


class StopRule:
    """Where a completion ends, and its text then."""

    def __init__(
        self, decoding: SamplingParams, tokenizer: Tokenizer, ends: frozenset[int], positions: int
    ) -> None:
        self._decoding = decoding
        self._tokenizer = tokenizer
        self._ends = ends
        self._positions = positions
        longest = max(len(stop) for stop in (BLANK_LINE, *decoding.stop))
        self._tail = (
            MAX_TOKENS_PER_CHARACTER * longest + 1
        )  # tokens in which a stop that has just come lies

    def text(self, prompt: Sequence[int], tokens: Sequence[int]) -> str | None:
        """The completion that so many tokens are, or None while it goes on."""
        full = len(tokens) >= self._decoding.max_tokens
        full = full or len(prompt) + len(tokens) >= self._positions
        if not (full or tokens[-1] in self._ends or self._stops(prompt, tokens)):
            return None
        return self.cut(prompt, tokens)

    def cut(self, prompt: Sequence[int], tokens: Sequence[int]) -> str:
        """The text of tokens up to the first stop."""
        said = self._said(prompt, [each for each in tokens if each not in self._ends])
        cuts = [said.find(stop) for stop in self._decoding.stop if stop]
        return said[: min((cut for cut in cuts if cut >= 0), default=len(said))]

    def _stops(self, prompt: Sequence[int], tokens: Sequence[int]) -> bool:
        stops, paragraph = self._decoding.stop, self._decoding.stop_at_paragraph
        if not (stops or paragraph):
            return False
        tail = self._tokenizer.decode_text([*tokens[-self._tail :]])
        if paragraph and BLANK_LINE in tail and BLANK_LINE in self._said(prompt, tokens).lstrip():
            return True
        return any(stop and stop in tail for stop in stops)

    def _said(self, prompt: Sequence[int], tokens: Sequence[int]) -> str:
        """The text of tokens as it follows on the prompt, its first blank included."""
        before = [*prompt[-1:]]
        return self._tokenizer.decode_text([*before, *tokens])[
            len(self._tokenizer.decode_text(before)) :
        ]


def _sample_tokens(
    logits: Logits, rows: Sequence[_SequenceState], decoding: SamplingParams
) -> Iterator[int]:
    if not bool(logits.isfinite().all()):
        raise NumericsProblem(
            "a completion came to logits that are not finite",
            next_step="inspect the model's weights, or compute in a wider dtype",
        )
    if not decoding.temperature:
        yield from logits.argmax(dim=-1).tolist()
        return
    likely = (logits / decoding.temperature).softmax(dim=-1)
    some, order = likely.topk(min(TOP_P_CANDIDATES, likely.shape[1]))
    enough = (some.sum(dim=-1) > decoding.top_p + TOP_P_MARGIN).tolist()
    for number, row in enumerate(rows):
        if enough[number]:
            yield _sample_top_p(some[number], order[number], row, decoding.top_p)
        else:
            every = likely[number].sort(descending=True, stable=True)
            yield _sample_top_p(every.values, every.indices, row, decoding.top_p)


def _sample_top_p(
    likely: Float32[Tensor, " some"],
    order: Int64[Tensor, " some"],
    row: _SequenceState,
    top_p: float,
) -> int:
    """A token by inversion of the distribution, the likeliest first."""
    before = likely.cumsum(dim=-1) - likely
    mass = likely.masked_fill(before >= top_p, 0.0).double().cumsum(dim=-1).cpu()
    drawn = random.Random(f"{row.prompt.seed} {len(row.tokens)}").random() * mass[-1]
    found = int(torch.searchsorted(mass, drawn, right=True))
    return int(order[min(found, len(mass) - 1)])
