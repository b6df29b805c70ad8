"""Reads turns of conversations, with the role names of common data sets."""

from __future__ import annotations

from camelpress.core.documents.json_fields import JsonFields, json_kind, quote_word
from camelpress.core.documents.omissions import Omission
from camelpress.core.text.tulu_format import Message

ROLES = {  # role name in data sets, in any case, to role of the Tulu format
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
    """Returns True for a row with a role, one turn of a conversation."""
    return any(row.is_any_of(key, ROLES) for key in ROLE_KEYS)


def read_turn(turn: JsonFields) -> Message:
    """Returns the message of a turn.

    Raises:
        Omission: the role is unknown, the turn calls a tool, or the content is no text.
    """
    for key in CALL_KEYS:
        if turn.is_truthy(key):
            raise Omission("a turn calls a tool")
    role_name = turn.text(turn.first_key(ROLE_KEYS))
    return make_message(role_name, _content(turn))


def make_message(role_name: str, content: str) -> Message:
    """Returns a message with the role for a data set's role name.

    Raises:
        Omission: the Tulu format has no such role.
    """
    role = ROLES.get(role_name.strip().casefold())
    if role is None:
        raise Omission(f"a turn has the role {quote_word(role_name)}")
    return Message.model_validate({"role": role, "content": content})


def make_exchange(user: str, answer: str) -> tuple[Message, Message]:
    """Returns a question and its answer as two messages."""
    return Message(role="user", content=user), Message(role="assistant", content=answer)


def _content(turn: JsonFields) -> str:
    """Returns the text of a turn; joins a list of text parts."""
    key = turn.first_key(CONTENT_KEYS)
    if not isinstance(turn.value(key), list):
        return turn.text(key)
    return "".join(_part(part) for part in turn.children(key))


def _part(part: JsonFields) -> str:
    part_type = part.value("type") if "type" in part else "text"
    if part_type != "text":
        label = quote_word(part_type) if isinstance(part_type, str) else json_kind(part_type)
        raise Omission(f"a turn has a part of type {label}")
    return part.text("text")
