"""Chat decoder on transformers' `generate`, one token at a time."""

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
    """Reasons for the end of a reply."""

    END = "end"  # stop token of the model
    LENGTH = "length"  # limit of `max_new_tokens`
    CONTEXT = "context"  # no positions left in the model
    INTERRUPTED = "interrupted"  # Ctrl-C by the user


@dataclass(frozen=True)
class ChatReply:
    """A reply of the model.

    `ids` include the stop token; `text` does not. `cached_prompt_tokens` were not computed again,
    because they are a prefix of the previous conversation.
    """

    ids: list[int]
    text: str
    finish_reason: StopReason
    prompt_tokens: int
    cached_prompt_tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens of the reply per second, prompt processing included."""
        return len(self.ids) / max(self.seconds, 1e-9)


class TransformersDecoder:
    """A model in memory with its tokenizer and the key-value cache of a conversation.

    Args:
        model: model of transformers.
        tokenizer: tokenizer of the model.
        stop_ids: token ids of the end of a reply.
        settings: sampling and length of replies.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        stop_ids: Sequence[int],
        settings: Generate,
    ) -> None:
        self.model: Any = model
        self.tokenizer = tokenizer
        self.positions = int(model.config.max_position_embeddings)
        self._stop_ids = frozenset(stop_ids)
        self._settings = settings
        self._cache = DynamicCache()
        self._cached_ids: list[int] = []

    def reply(self, prompt: Sequence[int], write: Callable[[str], None]) -> ChatReply:
        """Generates a reply; Ctrl-C ends the reply, not the program.

        Args:
            prompt: token ids, fewer than the model's positions.
            write: callback for each new part of the text, in whole characters.
        """
        start = time.monotonic()
        limit = min(self._settings.max_new_tokens, self.positions - len(prompt))
        torch.manual_seed(self._settings.seed)
        cached_tokens = self._crop_cache(prompt)
        streamer = _TokenStreamer(self.tokenizer, self._stop_ids, write)
        interrupted = False
        try:
            self._generate(prompt, limit, streamer)
        except KeyboardInterrupt:
            interrupted = True
        streamer.flush()
        # After an interruption, the layers may hold different numbers of tokens.
        self._cached_ids = [] if interrupted else [*prompt, *streamer.ids]
        return ChatReply(
            streamer.ids,
            streamer.text,
            self._finish_reason(streamer.ids, limit, interrupted=interrupted),
            len(prompt),
            cached_tokens,
            time.monotonic() - start,
        )

    def _generate(self, prompt: Sequence[int], limit: int, streamer: _TokenStreamer) -> None:
        ids = torch.tensor([list(prompt)], device=self.model.device)
        do_sample = self._settings.temperature > 0
        sampling = {"temperature": self._settings.temperature, "top_p": self._settings.top_p}
        config = GenerationConfig(
            do_sample=do_sample,
            max_new_tokens=limit,
            eos_token_id=sorted(self._stop_ids) or None,
            pad_token_id=min(self._stop_ids, default=0),  # unused in a batch of 1
            **(sampling | {"top_k": 0} if do_sample else {}),
        )
        self.model.generation_config = config  # otherwise its defaults fill unset fields
        with torch.inference_mode():
            self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=config,
                past_key_values=self._cache,
                streamer=streamer,
            )

    def _crop_cache(self, prompt: Sequence[int]) -> int:
        """Crops the cache to its common prefix with the prompt; returns the prefix's tokens."""
        length = self._cache.get_seq_length()
        limit = min(length, len(self._cached_ids), len(prompt) - 1)
        prefix = next((n for n in range(limit) if prompt[n] != self._cached_ids[n]), limit)
        if not prefix:
            self._cache = DynamicCache()
        elif prefix < length:
            self._cache.crop(prefix - length)  # negative: number of tokens to drop
        return prefix

    def _finish_reason(self, ids: list[int], limit: int, *, interrupted: bool) -> StopReason:
        if ids and ids[-1] in self._stop_ids:
            return StopReason.END
        if interrupted:
            return StopReason.INTERRUPTED
        return StopReason.LENGTH if limit == self._settings.max_new_tokens else StopReason.CONTEXT


class _TokenStreamer(BaseStreamer):
    """Takes tokens from `generate`, the prompt first, and writes them as text."""

    def __init__(
        self, tokenizer: Tokenizer, stop_ids: frozenset[int], write: Callable[[str], None]
    ) -> None:
        self.ids: list[int] = []
        self.text = ""
        self._decoder = Detokenizer(tokenizer)
        self._stop_ids = stop_ids
        self._write = write
        self._has_prompt = False

    def put(self, value: Int64[Tensor, "..."]) -> None:
        """Skips the prompt, then writes each new token."""
        if not self._has_prompt:
            self._has_prompt = True
            return
        for token in value.flatten().tolist():
            self.ids.append(token)
            if token not in self._stop_ids:
                self._emit(self._decoder.add_token(token))

    def end(self) -> None:
        """Does nothing: `flush` writes the remaining text, after an interruption, too."""

    def flush(self) -> None:
        """Writes the remaining text."""
        self._emit(self._decoder.finish())

    def _emit(self, text: str) -> None:
        if text:
            self.text += text
            self._write(text)
