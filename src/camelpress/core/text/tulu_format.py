r"""The Tulu chat format as token ids, segment by segment.

    <|user|>\n{content}\n<|assistant|>\n{content}</s>\n<|user|>\n...

The role markers are plain text. A segment is what stands between two special tokens; each is
encoded on its own, so that the ids are those the model was trained on, whatever a tokenizer does
with blanks and newlines next to a special token: BOS, segment, EOS, segment, EOS. The newline
after EOS is not a token: the tokenizers of the time dropped it.

Source: allenai/open-instruct e44fcf588, open_instruct/finetune.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from camelpress.core.errors import RecipeProblem
from camelpress.core.settings import Settings
from camelpress.core.text.hf_tokenizer import Tokenizer

# What transformers' chat machinery renders; the newline after <|assistant|> matters. After EOS
# there is none, so that the ids are those of training with tokenizers of any year.
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
    """Token ids, each with whether training took a loss on it."""

    ids: list[int]
    loss_mask: list[bool]


class ChatSegment(NamedTuple):
    """A text between two special tokens: what the model is given, then what it has to say.

    Where EOS follows, the text ends in an answer, which may be empty; elsewhere there is none.
    """

    prompt: str
    answer: str
    has_eos: bool

    @property
    def text(self) -> str:
        """All of it, as it is encoded."""
        return self.prompt + self.answer


def encode_chat(
    messages: Sequence[Message], tokenizer: Tokenizer, *, generation: bool = False
) -> list[int]:
    """The ids of one conversation: those of `encode_counted`."""
    return encode_with_loss_mask(messages, tokenizer, generation=generation).ids


def encode_with_loss_mask(
    messages: Sequence[Message], tokenizer: Tokenizer, *, generation: bool = False
) -> ChatTokens:
    """The ids of one conversation, and which of them training took a loss on.

    Counted are the tokens of each answer and the EOS that ends it. Where an answer begins is found
    as in training: by the number of ids that the text before it has by itself. One quirk of
    training is left out: the header of an answer that follows another answer, or that begins the
    conversation, is not counted here.

    Args:
        messages: at least one.
        tokenizer: gives ids, BOS and EOS; one that has no BOS gets none.
        generation: end in the assistant's header, ready for an answer.
    Returns:
        BOS once, EOS after each assistant turn; as many marks as ids.
    Raises:
        RecipeProblem: there is no message, or the tokenizer has no EOS.
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
    counted = [False] * len(ids)
    for segment in chat_segments(messages, generation=generation):
        found = tokenizer.encode(segment.text)
        given = len(tokenizer.encode(segment.prompt)) if segment.answer else len(found)
        ids += found
        counted += [place >= given for place in range(len(found))]
        if segment.has_eos:
            ids.append(tokenizer.eos)
            counted.append(True)
    return ChatTokens(ids, counted)


def chat_segments(
    messages: Sequence[Message], *, generation: bool = False
) -> Iterator[ChatSegment]:
    """Texts between special tokens, each with whether EOS follows it."""
    given = ""
    for message in messages:
        given += f"<|{message.role}|>\n"
        content = message.content.strip()
        if message.role == "assistant":
            yield ChatSegment(given, content, True)
            given = ""
        else:
            given += f"{content}\n"
    if generation:
        yield ChatSegment(given + "<|assistant|>\n", "", False)
    elif given:
        yield ChatSegment(given.rstrip("\n"), "", False)
