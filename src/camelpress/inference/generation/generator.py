"""Completes prompts with a model, in batches of equal sampling parameters."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.progress import note, track
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.inference.generation.decoder import StreamedDecoder
from camelpress.inference.generation.decoding_loop import generate_batch
from camelpress.inference.generation.prefixes import PrefixedText
from camelpress.inference.generation.sampling import SamplingParams, TokenPrompt
from camelpress.inference.model.memory_budget import free_bytes, kv_bytes_per_token, required_bytes
from camelpress.inference.model.streamed_model import StreamedModel

MAX_BATCH_ROWS = 128  # rows per batch; time grows in proportion beyond
TIMED_ROWS = 16  # rows of a timed step
TIMED_STEPS = 3  # timed steps; the fastest counts
CACHE_MEMORY_DIVISOR = 2  # keys and values take at most 1/2 of the memory left by the model
UNLIMITED_TOKENS = 2**31  # tokens without a limit


@dataclass(frozen=True)
class GenerationModel:
    """A model for generation tasks."""

    label: str  # name in progress bars and errors
    checkpoint: Checkpoint  # 16-bit or packed checkpoint
    model: StreamedModel  # the same model, streamed
    tokenizer: Tokenizer  # tokenizer of the reference, for both models
    eos_ids: Collection[int]  # ids that end a completion


class GenerationRequest(NamedTuple):
    """A prompt to complete, with its sampling parameters."""

    prompt: TokenPrompt
    sampling: SamplingParams
    max_positions: int  # last position of the completion


@runtime_checkable
class Generator(Protocol):
    """Completes prompts."""

    fixed_seconds: float  # total fixed cost of decoding steps in seconds, independent of rows

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, str]]:
        """Yields the index and completion of each request as they finish."""

    def release(self) -> None:
        """Frees the memory of the model."""


class LocalGenerator:
    """Generator of this package; reads the model at the first request.

    Args:
        generation_model: the model.
    """

    def __init__(self, generation_model: GenerationModel) -> None:
        self._target = generation_model
        self._decoder: StreamedDecoder | None = None
        self._step_seconds = 0.0  # fixed seconds per step
        self.fixed_seconds = 0.0

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, str]]:
        """Yields the index and completion of each request as they finish.

        Raises:
            NumericsProblem: logits are not finite.
        """
        groups: dict[tuple[SamplingParams, int], list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault((request.sampling, request.max_positions), []).append(index)
        decoder = self._decoder = self._decoder or self._load(requests)
        for (sampling, positions), indices in groups.items():
            generations = generate_batch(
                decoder,
                [requests[index].prompt for index in indices],
                sampling,
                self._target.tokenizer,
                ends=frozenset(self._target.eos_ids),
                positions=positions,
                rows=MAX_BATCH_ROWS,
                tokens=self._cache_tokens(),
            )
            start, start_passes = time.monotonic(), decoder.passes
            for _ in track(range(len(indices)), f"complete {self._target.label}"):
                generation = next(generations)
                yield indices[generation.prompt_index], generation.text
            seconds = time.monotonic() - start
            self.fixed_seconds += min(seconds, (decoder.passes - start_passes) * self._step_seconds)
            decoder.reset(1, 1)  # frees the cache

    def release(self) -> None:
        """Frees the memory of the blocks."""
        self._decoder = None

    def _load(self, requests: Sequence[GenerationRequest]) -> StreamedDecoder:
        """Loads the model, all blocks if they fit beside the longest completion."""
        model = self._target.model
        max_request_tokens = max(
            len(request.prompt.ids) + request.sampling.max_tokens for request in requests
        )
        free = free_bytes(model.device)
        need = required_bytes(
            self._target.checkpoint, model.config, model.dtype, tokens=max_request_tokens
        )
        in_memory = free is None or need <= free
        decoder = StreamedDecoder(model, self._target.label, in_memory=in_memory)
        if in_memory:
            self._step_seconds = _fixed_step_seconds(decoder)
            return decoder
        start = time.monotonic()
        decoder.prefill([PrefixedText((), [0])])
        seconds = time.monotonic() - start
        max_tokens = max(request.sampling.max_tokens for request in requests)
        note(
            f"the {self._target.label} does not fit in memory as a whole: one token of a batch "
            f"takes at least {seconds:.1f} s, so up to {MAX_BATCH_ROWS} completions of "
            f"{max_tokens:,} tokens take up to {seconds * max_tokens / 3600:.1f} hours"
        )
        self._step_seconds = UNLIMITED_TOKENS
        return decoder

    def _cache_tokens(self) -> int:
        """Returns the number of tokens whose keys and values fit in memory."""
        model = self._target.model
        free = free_bytes(model.device)
        return (
            UNLIMITED_TOKENS
            if free is None
            else free // CACHE_MEMORY_DIVISOR // kv_bytes_per_token(model.config, model.dtype)
        )


def _fixed_step_seconds(decoder: StreamedDecoder) -> float:
    """Estimates the fixed seconds per step, from steps with one row and with many rows."""
    fastest = []
    for rows in (1, TIMED_ROWS):
        decoder.reset(rows, TIMED_STEPS + 1)
        decoder.prefill([PrefixedText((), [0])] * rows)
        times = []
        for _ in range(TIMED_STEPS):
            start = time.monotonic()
            decoder.step([0] * rows)
            times.append(time.monotonic() - start)
        fastest.append(min(times))
    single_row_seconds, many_row_seconds = fastest
    return max(0.0, (TIMED_ROWS * single_row_seconds - many_row_seconds) / (TIMED_ROWS - 1))
