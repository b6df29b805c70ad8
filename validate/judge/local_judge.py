"""Adapts a Python callable, such as a local model, to the judge interface."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence

from camelpress.validate.judge.chat_completion import JudgeReply
from camelpress.validate.judge.judge_prompt import PROMPT_HASH, JudgeMessage, JudgePrompt

GenerateReplies = Callable[[Sequence[list[JudgeMessage]]], Iterable[tuple[int, str]]]


class InProcessJudge:
    """A judge behind a Python callable.

    Args:
        name: identifies the model and its decoding; verdicts are stored under it.
        generate: returns pairs of conversation index and reply text, in any order; it may yield
            them one by one.
    """

    def __init__(self, name: str, generate: GenerateReplies) -> None:
        self.name = f"{name} {PROMPT_HASH}"
        self._generate = generate

    def answers(
        self, questions: Sequence[JudgePrompt]
    ) -> Generator[tuple[JudgePrompt, JudgeReply], None, None]:
        """Yields replies in order of arrival."""
        for index, text in self._generate([question.messages() for question in questions]):
            yield questions[index], JudgeReply(text)
