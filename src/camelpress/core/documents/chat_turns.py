"""Reads turns of conversations, with the words that data sets have for the speakers."""

from __future__ import annotations

from camelpress.core.documents.json_fields import JsonFields, json_kind, quote_word
from camelpress.core.documents.omissions import Omission
from camelpress.core.text.tulu_format import Message

ROLES = {  # in any case
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
}
ROLE_KEYS = ("role", "from")
CONTENT_KEYS = ("content", "value", "text")
CALL_KEYS = ("tool_calls", "function_call")


def is_turn(row: JsonFields) -> bool:
    """Returns whether a row says who speaks, so that it is one turn of a conversation."""
    return any(row.is_any_of(key, ROLES) for key in ROLE_KEYS)


def read_turn(turn: JsonFields) -> Message:
    """Returns the message of a turn.

    Raises:
        Omission: its role is unknown, it calls a tool, or its content is no text.
    """
    for key in CALL_KEYS:
        if turn.is_truthy(key):
            raise Omission("a turn calls a tool")
    word = turn.text(turn.first_key(ROLE_KEYS))
    return make_message(word, _content(turn))


def make_message(word: str, content: str) -> Message:
    """Returns a message of the speaker that a word names.

    Raises:
        Omission: the word names no speaker that the format of Tulu has.
    """
    role = ROLES.get(word.strip().casefold())
    if role is None:
        raise Omission(f"a turn has the role {quote_word(word)}")
    return Message.model_validate({"role": role, "content": content})


def make_exchange(user: str, answer: str) -> tuple[Message, Message]:
    """Returns one question and its answer."""
    return Message(role="user", content=user), Message(role="assistant", content=answer)


def _content(turn: JsonFields) -> str:
    """Returns the text of a turn; parts of type text stand for one text, end to end."""
    key = turn.first_key(CONTENT_KEYS)
    if not isinstance(turn.value(key), list):
        return turn.text(key)
    return "".join(_part(part) for part in turn.children(key))


def _part(part: JsonFields) -> str:
    word = part.value("type") if "type" in part else "text"
    if word != "text":
        label = quote_word(word) if isinstance(word, str) else json_kind(word)
        raise Omission(f"a turn has a part of type {label}")
    return part.text("text")
