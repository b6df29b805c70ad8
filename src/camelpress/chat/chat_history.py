"""Chat history: the turns of a conversation, with undo and reset."""

from __future__ import annotations

from camelpress.chat.chat_model import ChatModel
from camelpress.core.errors import RecipeProblem
from camelpress.core.text.tulu_format import Message


class ChatHistory:
    """A conversation stored as exchanges, each a message and its answer.

    Args:
        model: model with chat format and system message.
    Raises:
        RecipeProblem: the chat format has no turns.
    """

    def __init__(self, model: ChatModel) -> None:
        if not model.prompt_format.has_turns:
            raise RecipeProblem(
                "plain text has no turns to chat in",
                next_step="use camelpress generate, or give --template tulu",
            )
        self._model = model
        self._exchanges: list[tuple[Message, Message]] = []

    def __len__(self) -> int:
        return len(self._exchanges)

    def prompt_ids(self, text: str) -> list[int]:
        """Returns the token ids of the history and a new message, without storing the message.

        Raises:
            RecipeProblem: the prompt leaves no position for an answer.
        """
        history = [message for exchange in self._exchanges for message in exchange]
        question = Message(role="user", content=text)
        return self._model.encode([*self._model.system_messages, *history, question])

    def add_exchange(self, text: str, answer: str) -> None:
        """Stores a message and its answer."""
        exchange = Message(role="user", content=text), Message(role="assistant", content=answer)
        self._exchanges.append(exchange)

    def undo(self) -> bool:
        """Removes the last exchange; returns false if the history is empty."""
        return bool(self._exchanges and self._exchanges.pop())

    def reset(self) -> None:
        """Removes all exchanges."""
        self._exchanges.clear()
