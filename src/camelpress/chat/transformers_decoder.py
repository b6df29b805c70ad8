"""A model that replies: transformers' own `generate`, one token at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from camelpress.chat.detokenizer import Detokenizer
from camelpress.chat.settings import Generate
from camelpress.core.text.hf_tokenizer import Tokenizer


class StopReason(StrEnum):
    """Why a reply ended."""

    END = "end"  # the model ended it
    LENGTH = "length"  # `max_new_tokens`
    CONTEXT = "context"  # the model has no more positions
    INTERRUPTED = "interrupted"  # Ctrl-C


@dataclass(frozen=True)
class ChatReply:
    """What the model said.

    `ids` are its tokens, with the one that ended it; `text` is without. `reused` tokens of the
    prompt were not computed again, since the conversation before began with them.
    """

    ids: list[int]
    text: str
    finish_reason: StopReason
    prompt_tokens: int
    cached_prompt_tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """How fast it came, the reading of the prompt included."""
        return len(self.ids) / max(self.seconds, 1e-9)


class TransformersDecoder:
    """A whole model in memory, its tokenizer, and what it has computed of a conversation.

    Args:
        model: of transformers.
        tokenizer: of the model.
        ends: the ids that end a reply.
        settings: how a reply is made.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        ends: Sequence[int],
        settings: Generate,
    ) -> None:
        self.model: Any = model
        self.tokenizer = tokenizer
        self.positions = int(model.config.max_position_embeddings)
        self._ends = frozenset(ends)
        self._settings = settings
        self._cache = DynamicCache()
        self._cached: list[int] = []

    def reply(self, prompt: Sequence[int], say: Callable[[str], None]) -> ChatReply:
        """Let the model answer; Ctrl-C ends the answer and not the program.

        Args:
            prompt: the ids it follows on, of which there are positions left.
            say: gets the text as it comes, in whole characters.
        """
        begun = time.monotonic()
        limit = min(self._settings.max_new_tokens, self.positions - len(prompt))
        torch.manual_seed(self._settings.seed)
        reused = self._crop_cache(prompt)
        streamer = _TokenStreamer(self.tokenizer, self._ends, say)
        interrupted = False
        try:
            self._generate(prompt, limit, streamer)
        except KeyboardInterrupt:
            interrupted = True
        streamer.flush()
        self._cached = [] if interrupted else [*prompt, *streamer.ids]  # layers may differ then
        return ChatReply(
            streamer.ids,
            streamer.text,
            self._finish_reason(streamer.ids, limit, interrupted=interrupted),
            len(prompt),
            reused,
            time.monotonic() - begun,
        )

    def _generate(self, prompt: Sequence[int], limit: int, streamer: _TokenStreamer) -> None:
        ids = torch.tensor([list(prompt)], device=self.model.device)
        draws = self._settings.temperature > 0
        drawing = {"temperature": self._settings.temperature, "top_p": self._settings.top_p}
        how = GenerationConfig(
            do_sample=draws,
            max_new_tokens=limit,
            eos_token_id=sorted(self._ends) or None,
            pad_token_id=min(self._ends, default=0),  # of a batch; there is none
            **(drawing | {"top_k": 0} if draws else {}),
        )
        self.model.generation_config = how  # else its defaults fill in what is not said
        with torch.inference_mode():
            self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=how,
                past_key_values=self._cache,
                streamer=streamer,
            )

    def _crop_cache(self, prompt: Sequence[int]) -> int:
        """Keep the keys and values of what the prompt begins with; how many tokens that is."""
        stored = self._cache.get_seq_length()
        known = min(stored, len(self._cached), len(prompt) - 1)
        same = next((n for n in range(known) if prompt[n] != self._cached[n]), known)
        if not same:
            self._cache = DynamicCache()
        elif same < stored:
            self._cache.crop(same - stored)  # negative: so many tokens less
        return same

    def _finish_reason(self, ids: list[int], limit: int, *, interrupted: bool) -> StopReason:
        if ids and ids[-1] in self._ends:
            return StopReason.END
        if interrupted:
            return StopReason.INTERRUPTED
        return StopReason.LENGTH if limit == self._settings.max_new_tokens else StopReason.CONTEXT


class _TokenStreamer(BaseStreamer):
    """Takes tokens from `generate`, the prompt first, and says them as text."""

    def __init__(
        self, tokenizer: Tokenizer, ends: frozenset[int], say: Callable[[str], None]
    ) -> None:
        self.ids: list[int] = []
        self.text = ""
        self._decoder = Detokenizer(tokenizer)
        self._ends = ends
        self._say = say
        self._has_prompt = False

    def put(self, value: Int64[Tensor, "..."]) -> None:
        """The prompt, then each new token."""
        if not self._has_prompt:
            self._has_prompt = True
            return
        for token in value.flatten().tolist():
            self.ids.append(token)
            if token not in self._ends:
                self._tell(self._decoder.add_token(token))

    def end(self) -> None:
        """Nothing: what is left is said by `flush`, after an interruption, too."""

    def flush(self) -> None:
        """Say what is left."""
        self._tell(self._decoder.finish())

    def _tell(self, text: str) -> None:
        if text:
            self.text += text
            self._say(text)
