"""Chat templates: encode a conversation as token ids in the model's training format.

Tulu's format is encoded segment by segment (`core.text.tulu_format`), as in training: a typed
`</s>` stays text. A template counts as Tulu's if it renders the same text. Any other template is
rendered and encoded by transformers, so special tokens inside a message keep their meaning.
"""

from __future__ import annotations

from collections.abc import Sequence

from camelpress.core.errors import CheckpointProblem, RecipeProblem, TemplateProblem
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.core.text.tulu_format import TULU_CHAT_TEMPLATE as TULU
from camelpress.core.text.tulu_format import Message, encode_chat

PROBE_MESSAGES = tuple(
    Message.model_validate({"role": role, "content": content})
    for role, content in (("user", "a"), ("assistant", "b"), ("user", "c"))
)


class ChatFormat:
    """Encodes conversations as token ids.

    Args:
        tokenizer: tokenizer of the model.
        template: `auto` (the tokenizer's own template), `tulu` or `plain`.
        source: name of the model in error messages.
    Raises:
        RecipeProblem: the template is `auto`, and the tokenizer has none.
    """

    def __init__(self, tokenizer: Tokenizer, template: str, *, source: str) -> None:
        self._tokenizer = tokenizer
        self._source = source
        if template == "auto":
            if tokenizer.chat_template is None:
                raise RecipeProblem(
                    f"the tokenizer of {source} has no chat template",
                    next_step="give --template tulu for Tulu's format, or --template plain to "
                    "continue the text as it is",
                )
            template = "tulu" if self._is_tulu() else "own"
        self.name = template

    @property
    def has_turns(self) -> bool:
        """Returns true if the format separates user and assistant."""
        return self.name != "plain"

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Returns the prompt's token ids, up to the start of the next answer.

        Raises:
            RecipeProblem: the format is plain text, and there is more than one message.
            CheckpointProblem: the template cannot be rendered.
        """
        if self.name == "tulu":
            return encode_chat(messages, self._tokenizer, generation=True)
        if self.name == "own":
            return self._tokenizer.encode_template_text(self._render(messages))
        if len(messages) != 1:
            raise RecipeProblem(
                "plain text has no system message and no turns",
                next_step="leave out --system, or give --template tulu",
            )
        return self._tokenizer.encode_document(messages[0].content)

    def _is_tulu(self) -> bool:
        if self._tokenizer.eos is None:
            return False
        try:
            return self._strip_neutral(self._render(PROBE_MESSAGES)) == self._strip_neutral(
                self._render(PROBE_MESSAGES, TULU)
            )
        except CheckpointProblem:  # `encode` reports it
            return False

    def _strip_neutral(self, text: str) -> str:
        """Removes text without effect on token ids: the first BOS, a newline after EOS."""
        begin, end = (
            "" if token is None else self._tokenizer.decode([token])
            for token in (self._tokenizer.bos, self._tokenizer.eos)
        )
        return text.removeprefix(begin).replace(f"{end}\n", end)

    def _render(self, messages: Sequence[Message], template: str | None = None) -> str:
        turns = [message.model_dump() for message in messages]
        try:
            return self._tokenizer.render_chat(turns, template)
        except TemplateProblem as error:
            raise CheckpointProblem(
                f"the chat template of {self._source} cannot be rendered ({error.reason})",
                next_step="fix it, leave out --system if it has no system message, or give "
                "--template tulu or plain",
            ) from error
