"""What the model is given: a conversation as ids, in the format that it was trained on.

Tulu's format is encoded segment by segment (`core.prompt`), as in training: a `</s>` that somebody
typed stays text. Which template is Tulu's is told by what it renders, not by how it is written. Any
other template is rendered and encoded as transformers does it: there, special tokens that stand in
a message count as such.
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
    """How a conversation becomes ids.

    Args:
        tokenizer: of the model.
        template: `auto` (the tokenizer's), `tulu` or `plain`.
        source: names the model in errors.
    Raises:
        RecipeProblem: `auto`, and the tokenizer has no template.
    """

    def __init__(self, tokenizer: Tokenizer, template: str, *, source: str) -> None:
        self._tokenizer = tokenizer
        self._source = source
        if template == "auto":
            if tokenizer.chat_template is None:
                raise RecipeProblem(
                    f"the tokenizer of {source} has no chat template",
                    next_step="give --template tulu for Tulu's format, or --template plain to let "
                    "the text go on as it is",
                )
            template = "tulu" if self._is_tulu() else "own"
        self.name = template

    @property
    def has_turns(self) -> bool:
        """Whether user and assistant can be told apart."""
        return self.name != "plain"

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The ids that an answer follows on.

        Raises:
            RecipeProblem: plain text has one message, and nothing before it.
            CheckpointProblem: the template cannot be rendered.
        """
        if self.name == "tulu":
            return encode_chat(messages, self._tokenizer, generation=True)
        if self.name == "own":
            return self._tokenizer.encode_template_text(self._rendered(messages))
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
            return self._without_bos(self._rendered(PROBE_MESSAGES)) == self._without_bos(
                self._rendered(PROBE_MESSAGES, TULU)
            )
        except CheckpointProblem:  # said when it is used
            return False

    def _without_bos(self, text: str) -> str:
        """Without what makes no difference to ids: the first BOS, a newline after EOS."""
        begin, end = (
            "" if each is None else self._tokenizer.decode([each])
            for each in (self._tokenizer.bos, self._tokenizer.eos)
        )
        return text.removeprefix(begin).replace(f"{end}\n", end)

    def _rendered(self, messages: Sequence[Message], template: str | None = None) -> str:
        turns = [message.model_dump() for message in messages]
        try:
            return self._tokenizer.render_chat(turns, template)
        except TemplateProblem as error:
            raise CheckpointProblem(
                f"the chat template of {self._source} cannot be rendered ({error.reason})",
                next_step="mend it, leave out --system if it knows no such message, or give "
                "--template tulu or plain",
            ) from error
