"""Stop rule: the end of a completion or reply, its reason, and the cut of its text."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.inference.generation.detokenizer import decode_completion
from camelpress.inference.generation.sampling import SamplingParams

BLANK_LINE = "\n\n"
MAX_TOKENS_PER_CHARACTER = 4  # largest number of tokens per character


class FinishReason(StrEnum):
    """Reasons for the end of a completion or reply."""

    END = "end"  # stop token of the model, or stop string
    LENGTH = "length"  # largest number of new tokens
    CONTEXT = "context"  # no positions left in the model
    INTERRUPTED = "interrupted"  # Ctrl-C by the user


class StopRule:
    """Decides the end of a completion, and cuts its text.

    Args:
        sampling: largest number of new tokens, and stop strings.
        tokenizer: tokenizer of the model.
        ends: ids that end a completion.
        positions: positions of the model; the last one ends a completion.
    """

    def __init__(
        self, sampling: SamplingParams, tokenizer: Tokenizer, ends: frozenset[int], positions: int
    ) -> None:
        self.max_tokens = sampling.max_tokens
        self._sampling = sampling
        self._tokenizer = tokenizer
        self._ends = ends
        self._positions = positions
        max_stop_characters = max(len(stop) for stop in (BLANK_LINE, *sampling.stop))
        self._tail = (
            MAX_TOKENS_PER_CHARACTER * max_stop_characters + 1
        )  # tokens to search for a new stop

    def finish_reason(self, prompt: Sequence[int], tokens: Sequence[int]) -> FinishReason | None:
        """Returns the reason for the end of a completion, or None if it continues."""
        if tokens[-1] in self._ends:
            return FinishReason.END
        if len(tokens) >= self.max_tokens:
            return FinishReason.LENGTH
        if len(prompt) + len(tokens) >= self._positions:
            return FinishReason.CONTEXT
        return FinishReason.END if self._stops(prompt, tokens) else None

    def cut_text(self, prompt: Sequence[int], tokens: Sequence[int]) -> str:
        """Returns the text of the tokens up to the first stop string."""
        text_tokens = [token for token in tokens if token not in self._ends]
        text = decode_completion(self._tokenizer, prompt, text_tokens)
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
            and BLANK_LINE in decode_completion(self._tokenizer, prompt, tokens).lstrip()
        ):
            return True
        return any(stop and stop in tail for stop in stops)
