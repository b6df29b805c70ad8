"""Sampling: its parameters, and samplers that choose the next token of each row from its logits."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from camelpress.core.errors import RecipeProblem
from camelpress.inference.generation.decoder import Logits

LENGTH_KWARGS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
DEFAULT_MAX_TOKENS = 256  # tokens; default of lm-evaluation-harness
TOP_P_CANDIDATES = 256  # likeliest tokens searched for top_p before all tokens are sorted
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
class SequenceState:
    """A row in progress."""

    index: int  # index of the prompt
    prompt: TokenPrompt
    tokens: list[int] = field(default_factory=list)


@runtime_checkable
class Sampler(Protocol):
    """Chooses the next token of each row."""

    def sample(self, logits: Logits, rows: Sequence[SequenceState]) -> Iterable[int]:
        """Returns a token for each row of the logits."""


class GreedySampler:
    """Takes the likeliest tokens."""

    def sample(self, logits: Logits, rows: Sequence[SequenceState]) -> list[int]:
        """Returns the likeliest token of each row."""
        tokens: list[int] = logits.argmax(dim=-1).tolist()
        return tokens


class InversionSampler:
    """Samples by inversion of the distribution, with a seed per row.

    A sample depends on the row's seed and number of tokens, and on no other row.

    Args:
        sampling: temperature and top-p.
    """

    def __init__(self, sampling: SamplingParams) -> None:
        self._temperature = sampling.temperature
        self._top_p = sampling.top_p

    def sample(self, logits: Logits, rows: Sequence[SequenceState]) -> Iterator[int]:
        """Yields a token for each row of the logits."""
        probabilities = (logits / self._temperature).softmax(dim=-1)
        candidates, order = probabilities.topk(min(TOP_P_CANDIDATES, probabilities.shape[1]))
        is_enough = (candidates.sum(dim=-1) > self._top_p + TOP_P_MARGIN).tolist()
        for number, row in enumerate(rows):
            if is_enough[number]:
                yield _sample_top_p(candidates[number], order[number], row, self._top_p)
            else:
                all_tokens = probabilities[number].sort(descending=True, stable=True)
                yield _sample_top_p(all_tokens.values, all_tokens.indices, row, self._top_p)


class MultinomialSampler:
    """Samples as `generate` of transformers does, with one seed for all rows.

    Args:
        sampling: temperature and top-p.
        seed: seed of the samples.
        device: device of the logits.
    """

    def __init__(self, sampling: SamplingParams, *, seed: int, device: torch.device) -> None:
        from transformers import TemperatureLogitsWarper, TopPLogitsWarper  # only a chat needs them

        self._generator = torch.Generator(device).manual_seed(seed)
        self._warpers: list[Any] = []
        if sampling.temperature != 1:
            self._warpers.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))

    def sample(self, logits: Logits, rows: Sequence[SequenceState]) -> list[int]:
        """Returns a token for each row of the logits."""
        for warper in self._warpers:
            logits = warper(None, logits)
        probabilities = logits.softmax(dim=-1)
        tokens = torch.multinomial(probabilities, num_samples=1, generator=self._generator)
        ids: list[int] = tokens.flatten().tolist()
        return ids


def _sample_top_p(
    probabilities: Float32[Tensor, " some"],
    order: Int64[Tensor, " some"],
    row: SequenceState,
    top_p: float,
) -> int:
    """Samples a token by inversion of the distribution, the likeliest tokens first."""
    before = probabilities.cumsum(dim=-1) - probabilities
    mass = probabilities.masked_fill(before >= top_p, 0.0).double().cumsum(dim=-1).cpu()
    target = random.Random(f"{row.prompt.seed} {len(row.tokens)}").random() * mass[-1]
    index = int(torch.searchsorted(mass, target, right=True))
    return int(order[min(index, len(mass) - 1)])
