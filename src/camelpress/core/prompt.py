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
from typing import Literal

from camelpress.core.errors import RecipeProblem
from camelpress.core.settings import Settings
from camelpress.core.tokens import Tokenizer

# What transformers' chat machinery renders; the newline after <|assistant|> matters. After EOS
# there is none, so that the ids are those of training with tokenizers of any year.
CHAT_TEMPLATE = (
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


def encode(
    messages: Sequence[Message], tokenizer: Tokenizer, *, generation: bool = False
) -> list[int]:
    """The ids of one conversation.

    Args:
        messages: at least one.
        tokenizer: gives ids, BOS and EOS; one that has no BOS gets none.
        generation: end in the assistant's header, ready for an answer.
    Returns:
        BOS once, EOS after each assistant turn.
    Raises:
        RecipeProblem: there is no message, or the tokenizer has no EOS.
    """
    if not messages:
        raise RecipeProblem("a conversation has no messages", next_step="leave it out")
    if tokenizer.eos is None:
        raise RecipeProblem(
            "the tokenizer has no end-of-sequence token", next_step="set eos_token in its config"
        )
    ids = [] if tokenizer.bos is None else [tokenizer.bos]
    for text, ends in segments(messages, generation=generation):
        ids += tokenizer.encode(text)
        if ends:
            ids.append(tokenizer.eos)
    return ids


def segments(
    messages: Sequence[Message], *, generation: bool = False
) -> Iterator[tuple[str, bool]]:
    """Texts between special tokens, each with whether EOS follows it."""
    text = ""
    for message in messages:
        text += f"<|{message.role}|>\n{message.content.strip()}"
        if message.role == "assistant":
            yield text, True
            text = ""
        else:
            text += "\n"
    if generation:
        yield text + "<|assistant|>\n", False
    elif text:
        yield text.rstrip("\n"), False
