"""Replies of a chat, written as they grow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from transformers import PreTrainedModel

from camelpress.chat.settings import Generate
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.inference.generation.decoding_loop import decode_prompts
from camelpress.inference.generation.detokenizer import Detokenizer
from camelpress.inference.generation.sampling import (
    GreedySampler,
    MultinomialSampler,
    Sampler,
    SamplingParams,
    TokenPrompt,
)
from camelpress.inference.generation.stop_rule import FinishReason, StopRule
from camelpress.inference.generation.transformers_decoder import TransformersDecoder


@dataclass(frozen=True)
class ChatReply:
    """A reply of the model.

    `ids` include the stop token; `text` does not. `cached_prompt_tokens` were not computed again,
    because they are a prefix of the previous conversation.
    """

    ids: list[int]
    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    cached_prompt_tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens of the reply per second, prompt processing included."""
        return len(self.ids) / max(self.seconds, 1e-9)


class ReplyGenerator:
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
        self.model = model
        self._tokenizer = tokenizer
        self._decoder = TransformersDecoder(model)
        self._seed = settings.seed
        self._sampling = SamplingParams(
            stop=(),
            max_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
        )
        positions = int(model.config.max_position_embeddings)
        self._stop_rule = StopRule(self._sampling, tokenizer, frozenset(stop_ids), positions)

    def reply(self, prompt: Sequence[int], write: Callable[[str], None]) -> ChatReply:
        """Generates a reply; Ctrl-C ends the reply, not the program.

        Args:
            prompt: token ids, fewer than the model's positions.
            write: callback for each new part of the text, in whole characters.
        Raises:
            NumericsProblem: logits are not finite.
        """
        start = time.monotonic()
        ids: list[int] = []
        text = _ReplyText(self._tokenizer, write)
        finish_reason = FinishReason.INTERRUPTED
        with suppress(KeyboardInterrupt):
            for token, reason in self._decode(prompt):
                ids.append(token)
                if reason is not FinishReason.END:
                    text.add_token(token)
                finish_reason = reason or finish_reason
        text.finish()
        return ChatReply(
            ids,
            text.text,
            finish_reason,
            len(prompt),
            self._decoder.reused_tokens,
            time.monotonic() - start,
        )

    def _decode(self, prompt: Sequence[int]) -> Iterator[tuple[int, FinishReason | None]]:
        """Yields each token of a reply, the last one with a reason."""
        prompts = [TokenPrompt([*prompt], seed=str(self._seed))]
        for row, reason in decode_prompts(
            self._decoder, prompts, self._sampler(), self._stop_rule, rows=1, tokens=0
        ):
            yield row.tokens[-1], reason

    def _sampler(self) -> Sampler:
        if not self._sampling.temperature:
            return GreedySampler()
        return MultinomialSampler(self._sampling, seed=self._seed, device=self.model.device)


class _ReplyText:
    """Text of a reply, written in whole characters."""

    def __init__(self, tokenizer: Tokenizer, write: Callable[[str], None]) -> None:
        self.text = ""
        self._detokenizer = Detokenizer(tokenizer)
        self._write = write

    def add_token(self, token: int) -> None:
        """Writes the text completed by a token."""
        self._emit(self._detokenizer.add_token(token))

    def finish(self) -> None:
        """Writes the remaining text."""
        self._emit(self._detokenizer.finish())

    def _emit(self, text: str) -> None:
        if text:
            self.text += text
            self._write(text)
