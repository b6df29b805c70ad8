r"""Encodes conversations in the Tulu chat format, segment by segment.

    <|user|>\n{content}\n<|assistant|>\n{content}</s>\n<|user|>\n...

The role markers are plain text. A segment is the text between two special tokens: BOS, segment,
EOS, segment, EOS. Each segment is encoded separately, so the ids are those of training, regardless
of the tokenizer's handling of blanks and newlines next to a special token. The newline after EOS is
not a token: the tokenizers of the time dropped it.

Source: allenai/open-instruct e44fcf588, open_instruct/finetune.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from camelpress.core.errors import RecipeProblem
from camelpress.core.settings import Settings
from camelpress.core.text.hf_tokenizer import Tokenizer

# Chat template for transformers; the newline after <|assistant|> matters. No newline follows EOS,
# so the ids are those of training with tokenizers of any year.
TULU_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] | trim }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}"
    "{% elif not loop.last or add_generation_prompt %}{{ '\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


class Message(Settings):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class ChatTokens(NamedTuple):
    """Token ids, and a mask of the tokens with a loss in training."""

    ids: list[int]
    loss_mask: list[bool]


class ChatSegment(NamedTuple):
    """Text between two special tokens: a prompt, then an answer.

    A segment before EOS ends with an answer, possibly empty; others have none.
    """

    prompt: str
    answer: str
    has_eos: bool

    @property
    def text(self) -> str:
        """Prompt and answer, as encoded."""
        return self.prompt + self.answer


def encode_chat(
    messages: Sequence[Message], tokenizer: Tokenizer, *, generation: bool = False
) -> list[int]:
    """Returns the ids of one conversation, as in `encode_with_loss_mask`."""
    return encode_with_loss_mask(messages, tokenizer, generation=generation).ids


def encode_with_loss_mask(
    messages: Sequence[Message], tokenizer: Tokenizer, *, generation: bool = False
) -> ChatTokens:
    """Returns the ids of one conversation, and the mask of the tokens with a loss in training.

    The loss covers the tokens of each answer and its EOS. As in training, an answer begins after as
    many ids as its prompt has when encoded alone. Unlike in training, the header of an answer after
    another answer, or at the start of the conversation, has no loss.

    Args:
        messages: at least one message.
        tokenizer: tokenizer with EOS; without BOS, the ids have none.
        generation: ends with the assistant's header, ready for an answer.
    Returns:
        ids with BOS once and EOS after each assistant turn; a mask of equal length.
    Raises:
        RecipeProblem: the conversation is empty, or the tokenizer has no EOS.
    Source:
        allenai/open-instruct e44fcf588, open_instruct/finetune.py, encode_with_messages_format.
    """
    if not messages:
        raise RecipeProblem("a conversation has no messages", next_step="leave it out")
    if tokenizer.eos is None:
        raise RecipeProblem(
            "the tokenizer has no end-of-sequence token", next_step="set eos_token in its config"
        )
    ids = [] if tokenizer.bos is None else [tokenizer.bos]
    loss_mask = [False] * len(ids)
    for segment in chat_segments(messages, generation=generation):
        segment_ids = tokenizer.encode(segment.text)
        prompt_tokens = (
            len(tokenizer.encode(segment.prompt)) if segment.answer else len(segment_ids)
        )
        ids += segment_ids
        loss_mask += [index >= prompt_tokens for index in range(len(segment_ids))]
        if segment.has_eos:
            ids.append(tokenizer.eos)
            loss_mask.append(True)
    return ChatTokens(ids, loss_mask)


def chat_segments(
    messages: Sequence[Message], *, generation: bool = False
) -> Iterator[ChatSegment]:
    """Yields the segments of a conversation."""
    prompt = ""
    for message in messages:
        prompt += f"<|{message.role}|>\n"
        content = message.content.strip()
        if message.role == "assistant":
            yield ChatSegment(prompt, content, True)
            prompt = ""
        else:
            prompt += f"{content}\n"
    if generation:
        yield ChatSegment(prompt + "<|assistant|>\n", "", False)
    elif prompt:
        yield ChatSegment(prompt.rstrip("\n"), "", False)
