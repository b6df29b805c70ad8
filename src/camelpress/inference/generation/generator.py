"""A model that completes prompts, those that are made alike together, by whatever it fits into."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.progress import note, track
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.inference.generation.decoder import StreamedDecoder
from camelpress.inference.generation.prefixes import PrefixedText
from camelpress.inference.generation.sampling import SamplingParams, TokenPrompt, generate_batch
from camelpress.inference.model.memory_budget import free_bytes, kv_bytes_per_token, required_bytes
from camelpress.inference.model.streamed_model import StreamedModel

MAX_BATCH_ROWS = 128  # completions side by side: with more, products take longer in proportion
TIMED_ROWS = 16  # rows, of which a step is timed
TIMED_STEPS = 3  # of which the fastest counts
CACHE_MEMORY_DIVISOR = (
    2  # one part in so many of what is free beside the model is for keys and values
)
UNLIMITED_TOKENS = 2**31  # where there is no limit


@dataclass(frozen=True)
class GenerationModel:
    """A model as tasks ask it."""

    label: str  # what progress and errors call it
    checkpoint: Checkpoint  # 16-bit or packed
    model: StreamedModel  # the same, block by block
    tokenizer: Tokenizer  # of the reference, by which both models are asked
    eos_ids: Collection[int]  # ids that end a completion


class GenerationRequest(NamedTuple):
    """A completion that is asked for."""

    prompt: TokenPrompt
    sampling: SamplingParams
    max_positions: int  # where it ends at the latest


@runtime_checkable
class Generator(Protocol):
    """Completes prompts."""

    fixed_seconds: float  # seconds so far that more completions beside would not have added to

    def generate(self, wanted: Sequence[GenerationRequest]) -> Iterator[tuple[int, str]]:
        """Place and completion of each, as they end."""

    def release(self) -> None:
        """Give back what the model takes."""


class LocalGenerator:
    """One model, read when the first completion is asked for.

    Args:
        respondent: the model.
    """

    def __init__(self, respondent: GenerationModel) -> None:
        self._of = respondent
        self._speaker: StreamedDecoder | None = None
        self._step = 0.0  # seconds, however few rows
        self.fixed_seconds = 0.0

    def generate(self, wanted: Sequence[GenerationRequest]) -> Iterator[tuple[int, str]]:
        """Place and completion of each, as they end.

        Raises:
            NumericsProblem: logits that are not finite.
        """
        alike: dict[tuple[SamplingParams, int], list[int]] = {}
        for place, each in enumerate(wanted):
            alike.setdefault((each.sampling, each.max_positions), []).append(place)
        speaker = self._speaker = self._speaker or self._load(wanted)
        for (decoding, positions), places in alike.items():
            found = generate_batch(
                speaker,
                [wanted[place].prompt for place in places],
                decoding,
                self._of.tokenizer,
                ends=frozenset(self._of.eos_ids),
                positions=positions,
                rows=MAX_BATCH_ROWS,
                tokens=self._cache_tokens(),
            )
            clock, walks = time.monotonic(), speaker.passes
            for _ in track(range(len(places)), f"complete {self._of.label}"):
                done = next(found)
                yield places[done.prompt_index], done.text
            took = time.monotonic() - clock
            self.fixed_seconds += min(took, (speaker.passes - walks) * self._step)
            speaker.reset(1, 1)  # gives room back

    def release(self) -> None:
        """Forget the model, if it is in memory as a whole."""
        self._speaker = None

    def _load(self, wanted: Sequence[GenerationRequest]) -> StreamedDecoder:
        """The model, as a whole where it fits beside the longest completion."""
        model = self._of.model
        longest = max(len(each.prompt.ids) + each.sampling.max_tokens for each in wanted)
        free = free_bytes(model.device)
        need = required_bytes(self._of.checkpoint, model.config, model.dtype, tokens=longest)
        whole = free is None or need <= free
        speaker = StreamedDecoder(model, self._of.label, whole=whole)
        if whole:
            self._step = _fixed_step_seconds(speaker)
            return speaker
        begun = time.monotonic()
        speaker.prefill([PrefixedText((), [0])])
        took = time.monotonic() - begun
        most = max(each.sampling.max_tokens for each in wanted)
        note(
            f"the {self._of.label} does not fit into memory as a whole: a token of all completions "
            f"side by side takes {took:.1f} s and more, so that {MAX_BATCH_ROWS} or fewer "
            f"of up to {most:,} "
            f"tokens take up to {took * most / 3600:.1f} hours"
        )
        self._step = UNLIMITED_TOKENS
        return speaker

    def _cache_tokens(self) -> int:
        """Tokens whose keys and values have room."""
        model = self._of.model
        free = free_bytes(model.device)
        return (
            UNLIMITED_TOKENS
            if free is None
            else free // CACHE_MEMORY_DIVISOR // kv_bytes_per_token(model.config, model.dtype)
        )


def _fixed_step_seconds(speaker: StreamedDecoder) -> float:
    """Seconds that a step takes, however few rows it has; by two that differ in that."""
    took = []
    for rows in (1, TIMED_ROWS):
        speaker.reset(rows, TIMED_STEPS + 1)
        speaker.prefill([PrefixedText((), [0])] * rows)
        times = []
        for _ in range(TIMED_STEPS):
            begun = time.monotonic()
            speaker.step([0] * rows)
            times.append(time.monotonic() - begun)
        took.append(min(times))
    one, some = took
    return max(0.0, (TIMED_ROWS * one - some) / (TIMED_ROWS - 1))
