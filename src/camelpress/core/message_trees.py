"""Conversations as paths through trees of messages, as OASST publishes them.

Every path from a first prompt to an answer is a conversation, whether or not the talk goes on from
there. So beginnings repeat, as in Tulu 1. Later versions of the conversion took only last answers
and could keep the best replies; none of that here. Rank and language are not used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from camelpress.core.fields import Fields, kind_of
from camelpress.core.omissions import Omission
from camelpress.core.prompt import Message
from camelpress.core.turns import make_message

TABLE_KEYS = ("message_id", "parent_id", "role", "text")

Key: TypeAlias = str | int | float
Path: TypeAlias = tuple[Message, ...]


def is_message(row: Fields) -> bool:
    """Returns whether a row is one message of a table; a first prompt may lack `parent_id`."""
    return all(key in row for key in TABLE_KEYS if key != "parent_id")


def tree_paths(root: Fields) -> Iterator[Path | Omission]:
    """Yields the conversations of a tree that is nested by `replies`.

    A message marked as deleted stays, as in Tulu 1.
    """
    yield from _walk([root], _replies, _message)


def table_paths(rows: Sequence[Fields]) -> Iterator[Path | Omission]:
    """Yields the conversations of a table of messages, each of which names its parent.

    A message marked as deleted is left out, with all replies to it.
    """
    messages: dict[Key, Fields] = {}
    replies: dict[Key | None, list[Fields]] = {}
    for row in rows:
        try:
            key = _key(row, "message_id")
            parent = _key(row, "parent_id") if row.is_given("parent_id") else None
            if key in messages:
                raise Omission("message_id stands there twice")
        except Omission as omission:
            yield omission.of("messages")
        else:
            messages[key] = row
            replies.setdefault(parent, []).append(row)
    reached: list[Fields] = []

    def following(row: Fields) -> list[Fields]:
        reached.append(row)
        return replies.get(_key(row, "message_id"), [])

    yield from _walk(replies.get(None, []), following, _kept_message)
    if len(reached) < len(messages):
        reason = "no path leads to it from a first prompt"
        yield Omission(reason, "messages", len(messages) - len(reached))


def _walk(
    roots: Sequence[Fields],
    replies: Callable[[Fields], list[Fields]],
    read: Callable[[Fields], Message],
) -> Iterator[Path | Omission]:
    """Yields a conversation for each answer, and an omission for each message without one."""
    stack: list[tuple[Fields, Path | None]] = [(root, ()) for root in reversed(roots)]
    while stack:
        node, before = stack.pop()
        path: Path | None = None
        following: list[Fields] = []
        try:
            following = replies(node)
        except Omission as omission:
            yield omission.of("messages")
        try:
            path = _extend(before, node, read)
            if path[-1].role == "assistant":
                yield path
            elif not following:
                raise Omission("no answer follows")
        except Omission as omission:
            yield omission.of("messages")
        stack += [(reply, path) for reply in reversed(following)]


def _extend(before: Path | None, node: Fields, read: Callable[[Fields], Message]) -> Path:
    if before is None:
        raise Omission("it replies to a message that is left out")
    return (*before, read(node))


def _message(node: Fields) -> Message:
    return make_message(node.text("role"), node.text("text"))


def _kept_message(row: Fields) -> Message:
    if row.holds("deleted"):
        raise Omission("it is marked as deleted")
    message = _message(row)
    if message.role == "assistant" and not row.is_given("parent_id"):
        raise Omission("it is an answer without a parent")
    return message


def _replies(node: Fields) -> list[Fields]:
    return node.children("replies") if node.is_given("replies") else []


def _key(row: Fields, name: str) -> Key:
    value = row.value(name)
    if not isinstance(value, str | int | float):
        raise Omission(f"{name} is {kind_of(value)}")
    return value
