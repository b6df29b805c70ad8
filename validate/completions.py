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

from camelpress.core.errors import NumericsProblem, RecipeProblem
from camelpress.core.tokens import Tokenizer
from camelpress.validate.speakers import Engine, Logits, shared

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
USUAL_LENGTH = 256  # of lm-evaluation-harness, where a task does not say
BLANK_LINE = "\n\n"
SPELLED = 4  # tokens that one character takes at most


@dataclass(frozen=True)
class Decoding:
    """How a completion is made and where it ends."""

    stops: tuple[str, ...]
    most: int  # tokens
    temperature: float  # 0: the likeliest token, always
    top_p: float
    paragraph: bool = False  # ends with the first paragraph, and is not cut

    @classmethod
    def of(cls, asked: Mapping[str, Any], task: str | None) -> Decoding:
        """What a task of lm-evaluation-harness asks for.

        Raises:
            RecipeProblem: something that is not done here, such as beams.
        """
        left = dict(asked)
        stops = left.pop("until", None) or []
        lengths = [left.pop(name, None) for name in LENGTHS]
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
            stops=(stops,) if isinstance(stops, str) else tuple(stops),
            most=int(next((each for each in lengths if each is not None), USUAL_LENGTH)),
            temperature=temperature if draws else 0.0,
            top_p=top_p,
        )


class Prompt(NamedTuple):
    """What is to be completed, and the seed of its draws."""

    ids: list[int]
    seed: str


@dataclass
class _Row:
    prompt: Prompt
    tokens: list[int] = field(default_factory=list)
    text: str | None = None  # when it has ended


def complete(
    engine: Engine,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    tokenizer: Tokenizer,
    *,
    ends: frozenset[int],
    positions: int,
) -> list[str]:
    """The completions of prompts, each cut before the first stop.

    Args:
        engine: of the model.
        prompts: at least one, each shorter than the positions.
        decoding: how tokens are chosen, and where a completion ends.
        tokenizer: of the model.
        ends: ids that end a completion.
        positions: of the model; a completion ends at the last one.
    Raises:
        NumericsProblem: logits that are not finite.
    """
    rows = [_Row(prompt) for prompt in prompts]
    ending = _Ending(decoding, tokenizer, ends, positions)
    going, logits = rows, engine.begin([prompt.ids for prompt in prompts], decoding.most)
    while True:
        for row, token in zip(going, _chosen(logits, going, decoding), strict=True):
            row.tokens.append(token)
            row.text = ending.text(row)
        kept = [place for place, row in enumerate(going) if row.text is None]
        if len(kept) < len(going):
            going = [going[place] for place in kept]
            if not going:
                return [row.text or "" for row in rows]
            engine.keep(kept)
        logits = engine.go_on([row.tokens[-1] for row in going])


def batches(prompts: Sequence[Prompt], places: Sequence[int], size: int) -> list[list[int]]:
    """Places in runs of at most so many prompts; those that begin alike go together.

    The examples before a question are read once for all of a batch, so a batch ends where they
    change.
    """
    found: list[list[int]] = []
    same = 0
    for place in sorted(places, key=lambda place: prompts[place].ids):
        last = found[-1] if found else []
        common = shared([prompts[last[0]].ids, prompts[place].ids]) if last else 0
        if not last or len(last) == size or (len(last) > 1 and 2 * common < same):
            found.append([place])
        else:
            last.append(place)
            same = common
    return found


class _Ending:
    """Where a completion ends, and its text then."""

    def __init__(
        self, decoding: Decoding, tokenizer: Tokenizer, ends: frozenset[int], positions: int
    ) -> None:
        self._decoding = decoding
        self._tokenizer = tokenizer
        self._ends = ends
        self._positions = positions
        longest = max(len(stop) for stop in (BLANK_LINE, *decoding.stops))
        self._tail = SPELLED * longest + 1  # tokens in which a stop that has just come lies

    def text(self, row: _Row) -> str | None:
        """The completion, or None while it goes on."""
        tokens = row.tokens
        full = len(tokens) >= self._decoding.most
        full = full or len(row.prompt.ids) + len(tokens) >= self._positions
        if not (full or tokens[-1] in self._ends or self._stops(row)):
            return None
        said = self._said(row, [each for each in tokens if each not in self._ends])
        cuts = [said.find(stop) for stop in self._decoding.stops if stop]
        return said[: min((cut for cut in cuts if cut >= 0), default=len(said))]

    def _stops(self, row: _Row) -> bool:
        stops, paragraph = self._decoding.stops, self._decoding.paragraph
        if not (stops or paragraph):
            return False
        tail = self._tokenizer.words(row.tokens[-self._tail :])
        if paragraph and BLANK_LINE in tail and BLANK_LINE in self._said(row, row.tokens).lstrip():
            return True
        return any(stop and stop in tail for stop in stops)

    def _said(self, row: _Row, tokens: list[int]) -> str:
        """The text of tokens as it follows on the prompt, its first blank included."""
        before = row.prompt.ids[-1:]
        return self._tokenizer.words([*before, *tokens])[len(self._tokenizer.words(before)) :]


def _chosen(logits: Logits, rows: Sequence[_Row], decoding: Decoding) -> Iterator[int]:
    if not bool(logits.isfinite().all()):
        raise NumericsProblem(
            "a completion came to logits that are not finite",
            next_step="inspect the model's weights, or compute in a wider dtype",
        )
    if not decoding.temperature:
        yield from logits.argmax(dim=-1).tolist()
        return
    sorted_, order = (logits / decoding.temperature).softmax(dim=-1).sort(dim=-1, descending=True)
    before = sorted_.cumsum(dim=-1) - sorted_
    mass = sorted_.masked_fill(before >= decoding.top_p, 0.0).double().cumsum(dim=-1).cpu()
    for place, row in enumerate(rows):
        drawn = random.Random(f"{row.prompt.seed} {len(row.tokens)}").random() * mass[place, -1]
        found = int(torch.searchsorted(mass[place], drawn, right=True))
        yield int(order[place, min(found, mass.shape[1] - 1)])
