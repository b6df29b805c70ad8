"""A model in this process as a judge, or anything else that answers conversations."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence

from camelpress.validate.judge.chat_completion import JudgeReply
from camelpress.validate.judge.judge_prompt import PROMPT_HASH, JudgeMessage, JudgePrompt

GenerateReplies = Callable[[Sequence[list[JudgeMessage]]], Iterable[tuple[int, str]]]


class InProcessJudge:
    """A judge that is called.

    Args:
        name: tells the model and how it decodes; verdicts are kept under it.
        generate: the assistant's text for each conversation, with its place among them, in any
            order; it may yield them one by one.
    """

    def __init__(self, name: str, generate: GenerateReplies) -> None:
        self.name = f"{name} {PROMPT_HASH}"
        self._generate = generate

    def answers(
        self, questions: Sequence[JudgePrompt]
    ) -> Generator[tuple[JudgePrompt, JudgeReply], None, None]:
        """Replies, each as soon as it is there."""
        for place, text in self._generate([question.messages() for question in questions]):
            yield questions[place], JudgeReply(text)
