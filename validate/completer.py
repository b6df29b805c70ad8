"""A model that completes prompts, those that are made alike together, by whatever it fits into."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from camelpress.core.blocks import StreamedModel
from camelpress.core.checkpoint import Checkpoint
from camelpress.core.memory import available, needed
from camelpress.core.progress import track
from camelpress.core.tokens import Tokenizer
from camelpress.core.whole import load
from camelpress.validate.completions import Decoding, Prompt, batches, complete
from camelpress.validate.speakers import Engine, Streamed, Whole

BATCH = 16  # completions side by side
ANY = 2**31  # where there is no limit


class Wanted(NamedTuple):
    """A completion that is asked for."""

    prompt: Prompt
    decoding: Decoding
    positions: int  # where it ends at the latest


class Completer:
    """One model, read when the first completion is asked for.

    Args:
        label: what progress and errors call it.
        checkpoint: 16-bit or packed.
        model: the same, block by block.
        tokenizer: of the prompts.
        ends: ids that end a completion.
    """

    def __init__(
        self,
        label: str,
        checkpoint: Checkpoint,
        model: StreamedModel,
        tokenizer: Tokenizer,
        ends: Collection[int],
    ) -> None:
        self._label = label
        self._checkpoint = checkpoint
        self._model = model
        self._tokenizer = tokenizer
        self._ends = frozenset(ends)
        self._engine: tuple[Engine, int] | None = None

    def complete(self, wanted: Sequence[Wanted]) -> Iterator[tuple[int, str]]:
        """Place and completion of each, batch by batch.

        Raises:
            NumericsProblem: logits that are not finite.
        """
        alike: dict[tuple[Decoding, int], list[int]] = {}
        for place, each in enumerate(wanted):
            alike.setdefault((each.decoding, each.positions), []).append(place)
        prompts = [each.prompt for each in wanted]
        longest = max(len(each.prompt.ids) + each.decoding.most for each in wanted)
        self._engine = self._engine or self._made(longest)
        engine, size = self._engine
        for (decoding, positions), places in alike.items():
            rows = batches(prompts, places, size) if size < ANY else [places]
            for batch in track(rows, f"complete {self._label}"):
                texts = complete(
                    engine,
                    [prompts[place] for place in batch],
                    decoding,
                    self._tokenizer,
                    ends=self._ends,
                    positions=positions,
                )
                yield from zip(batch, texts, strict=True)

    def release(self) -> None:
        """Forget the model, if it is in memory as a whole."""
        self._engine = None

    def _made(self, tokens: int) -> tuple[Engine, int]:
        """What completes, and how many prompts at once."""
        model = self._model
        free = available(model.device)
        need = needed(self._checkpoint, model.config, model.dtype, tokens=BATCH * tokens)
        if free is None or need <= free:
            whole = load(self._checkpoint, device=model.device, dtype=model.dtype)
            return Whole(whole), BATCH
        return Streamed(model, self._label), ANY
