"""A model that completes prompts, those that are made alike together, by whatever it fits into."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.progress import note, track
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.inference.generation.decoder import Speaker
from camelpress.inference.generation.prefixes import Text
from camelpress.inference.generation.sampling import Decoding, Prompt, complete
from camelpress.inference.model.memory_budget import available, kept, needed
from camelpress.inference.model.streamed_model import StreamedModel

ROWS = 128  # completions side by side: with more, products take longer in proportion
TRIED = 16  # rows, of which a step is timed
STEPS = 3  # of which the fastest counts
ROOM = 2  # one part in so many of what is free beside the model is for keys and values
ANY = 2**31  # where there is no limit


@dataclass(frozen=True)
class Respondent:
    """A model as tasks ask it."""

    label: str  # what progress and errors call it
    checkpoint: Checkpoint  # 16-bit or packed
    model: StreamedModel  # the same, block by block
    tokenizer: Tokenizer  # of the reference, by which both models are asked
    ends: Collection[int]  # ids that end a completion


class Wanted(NamedTuple):
    """A completion that is asked for."""

    prompt: Prompt
    decoding: Decoding
    positions: int  # where it ends at the latest


@runtime_checkable
class Completes(Protocol):
    """Completes prompts."""

    overhead: float  # seconds so far that more completions beside would not have added to

    def complete(self, wanted: Sequence[Wanted]) -> Iterator[tuple[int, str]]:
        """Place and completion of each, as they end."""

    def release(self) -> None:
        """Give back what the model takes."""


class Completer:
    """One model, read when the first completion is asked for.

    Args:
        respondent: the model.
    """

    def __init__(self, respondent: Respondent) -> None:
        self._of = respondent
        self._speaker: Speaker | None = None
        self._step = 0.0  # seconds, however few rows
        self.overhead = 0.0

    def complete(self, wanted: Sequence[Wanted]) -> Iterator[tuple[int, str]]:
        """Place and completion of each, as they end.

        Raises:
            NumericsProblem: logits that are not finite.
        """
        alike: dict[tuple[Decoding, int], list[int]] = {}
        for place, each in enumerate(wanted):
            alike.setdefault((each.decoding, each.positions), []).append(place)
        speaker = self._speaker = self._speaker or self._made(wanted)
        for (decoding, positions), places in alike.items():
            found = complete(
                speaker,
                [wanted[place].prompt for place in places],
                decoding,
                self._of.tokenizer,
                ends=frozenset(self._of.ends),
                positions=positions,
                rows=ROWS,
                tokens=self._room(),
            )
            clock, walks = time.monotonic(), speaker.walks
            for _ in track(range(len(places)), f"complete {self._of.label}"):
                done = next(found)
                yield places[done.place], done.text
            took = time.monotonic() - clock
            self.overhead += min(took, (speaker.walks - walks) * self._step)
            speaker.open(1, 1)  # gives room back

    def release(self) -> None:
        """Forget the model, if it is in memory as a whole."""
        self._speaker = None

    def _made(self, wanted: Sequence[Wanted]) -> Speaker:
        """The model, as a whole where it fits beside the longest completion."""
        model = self._of.model
        longest = max(len(each.prompt.ids) + each.decoding.most for each in wanted)
        free = available(model.device)
        need = needed(self._of.checkpoint, model.config, model.dtype, tokens=longest)
        whole = free is None or need <= free
        speaker = Speaker(model, self._of.label, whole=whole)
        if whole:
            self._step = _overhead(speaker)
            return speaker
        begun = time.monotonic()
        speaker.add([Text((), [0])])
        took = time.monotonic() - begun
        most = max(each.decoding.most for each in wanted)
        note(
            f"the {self._of.label} does not fit into memory as a whole: a token of all completions "
            f"side by side takes {took:.1f} s and more, so that {ROWS} or fewer of up to {most:,} "
            f"tokens take up to {took * most / 3600:.1f} hours"
        )
        self._step = ANY
        return speaker

    def _room(self) -> int:
        """Tokens whose keys and values have room."""
        model = self._of.model
        free = available(model.device)
        return ANY if free is None else free // ROOM // kept(model.config, model.dtype)


def _overhead(speaker: Speaker) -> float:
    """Seconds that a step takes, however few rows it has; by two that differ in that."""
    took = []
    for rows in (1, TRIED):
        speaker.open(rows, STEPS + 1)
        speaker.add([Text((), [0])] * rows)
        times = []
        for _ in range(STEPS):
            begun = time.monotonic()
            speaker.go_on([0] * rows)
            times.append(time.monotonic() - begun)
        took.append(min(times))
    one, some = took
    return max(0.0, (TRIED * one - some) / (TRIED - 1))
