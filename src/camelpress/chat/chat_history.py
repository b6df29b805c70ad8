"""The turns of a chat: what was said, taken back, or forgotten."""

from __future__ import annotations

from camelpress.chat.chat_model import ChatModel
from camelpress.core.errors import RecipeProblem
from camelpress.core.text.tulu_format import Message


class ChatHistory:
    """A conversation that grows by whole exchanges, a message and its answer.

    Args:
        prepared: knows the format, and what stands before the first message.
    Raises:
        RecipeProblem: the format has no turns, or the model no room for what stands before them.
    """

    def __init__(self, prepared: ChatModel) -> None:
        if not prepared.prompt_format.has_turns:
            raise RecipeProblem(
                "plain text has no turns to chat in",
                next_step="use camelpress generate, or give --template tulu",
            )
        self._prepared = prepared
        self._exchanges: list[tuple[Message, Message]] = []

    def __len__(self) -> int:
        return len(self._exchanges)

    def prompt_ids(self, text: str) -> list[int]:
        """The ids that the answer to a message follows on; the message is not kept yet.

        Raises:
            RecipeProblem: it is too long for what is left of the model's positions.
        """
        before = [message for exchange in self._exchanges for message in exchange]
        question = Message(role="user", content=text)
        return self._prepared.encode([*self._prepared.system_messages, *before, question])

    def add_exchange(self, text: str, answer: str) -> None:
        """Keep a message and its answer."""
        exchange = Message(role="user", content=text), Message(role="assistant", content=answer)
        self._exchanges.append(exchange)

    def undo(self) -> bool:
        """Take the last exchange back; False where there is none."""
        return bool(self._exchanges and self._exchanges.pop())

    def reset(self) -> None:
        """Forget all of it."""
        self._exchanges.clear()
