"""A model in this process as a judge, or anything else that answers conversations."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence

from camelpress.validate.judge.chat_completion import Reply
from camelpress.validate.judge.judge_prompt import WORDING, Message, Question

Generate = Callable[[Sequence[list[Message]]], Iterable[tuple[int, str]]]


class Local:
    """A judge that is called.

    Args:
        name: tells the model and how it decodes; verdicts are kept under it.
        generate: the assistant's text for each conversation, with its place among them, in any
            order; it may yield them one by one.
    """

    def __init__(self, name: str, generate: Generate) -> None:
        self.name = f"{name} {WORDING}"
        self._generate = generate

    def answers(
        self, questions: Sequence[Question]
    ) -> Generator[tuple[Question, Reply], None, None]:
        """Replies, each as soon as it is there."""
        for place, text in self._generate([question.messages() for question in questions]):
            yield questions[place], Reply(text)
