"""Builds conversations from paths through message trees, the form of OASST.

Every path from a first prompt to an answer is a conversation, even if replies follow. Beginnings
therefore repeat, as in Tulu 1. Later versions of the conversion took only last answers, and could
keep only the best replies. This module does neither, and ignores rank and language.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from camelpress.core.documents.chat_turns import make_message
from camelpress.core.documents.json_fields import JsonFields, json_kind
from camelpress.core.documents.omissions import Omission
from camelpress.core.text.tulu_format import Message

TABLE_KEYS = ("message_id", "parent_id", "role", "text")

Key: TypeAlias = str | int | float
MessagePath: TypeAlias = tuple[Message, ...]


def is_message(row: JsonFields) -> bool:
    """Returns True for one message of a table; a first prompt may lack `parent_id`."""
    return all(key in row for key in TABLE_KEYS if key != "parent_id")


def tree_paths(root: JsonFields) -> Iterator[MessagePath | Omission]:
    """Yields the conversations of a tree nested by `replies`.

    A message marked as deleted stays, as in Tulu 1.
    """
    yield from _walk_tree([root], _replies, _message)


def table_paths(rows: Sequence[JsonFields]) -> Iterator[MessagePath | Omission]:
    """Yields the conversations of a table of messages linked by `parent_id`.

    A message marked as deleted is left out, with all replies to it.
    """
    table = _MessageTable()
    for row in rows:
        try:
            table.add(row)
        except Omission as omission:
            yield omission.with_unit("messages")
    yield from _walk_tree(table.roots, table.replies, _table_message)
    if table.orphans:
        reason = "no path leads to it from a first prompt"
        yield Omission(reason, "messages", len(table.orphans))


class _MessageTable:
    """Messages of a table, indexed by the key of their parent."""

    def __init__(self) -> None:
        self.orphans: set[Key] = set()
        self._keys: set[Key] = set()
        self._replies: dict[Key | None, list[JsonFields]] = {}

    @property
    def roots(self) -> list[JsonFields]:
        """Messages without a parent."""
        return self._replies.get(None, [])

    def add(self, row: JsonFields) -> None:
        """Adds a message; a repeated key is an omission."""
        key = _key(row, "message_id")
        parent = _key(row, "parent_id") if row.has_value("parent_id") else None
        if key in self._keys:
            raise Omission("message_id appears twice")
        self._keys.add(key)
        self.orphans.add(key)
        self._replies.setdefault(parent, []).append(row)

    def replies(self, row: JsonFields) -> list[JsonFields]:
        """Returns the replies to a message, and takes the message off the orphans."""
        key = _key(row, "message_id")
        self.orphans.discard(key)
        return self._replies.get(key, [])


def _walk_tree(
    roots: Sequence[JsonFields],
    replies: Callable[[JsonFields], list[JsonFields]],
    read: Callable[[JsonFields], Message],
) -> Iterator[MessagePath | Omission]:
    """Yields a conversation per answer, depth first, and an omission per unusable message."""
    stack: list[tuple[JsonFields, MessagePath | None]] = [(root, ()) for root in reversed(roots)]
    while stack:
        node, parent_path = stack.pop()
        path: MessagePath | None = None
        answers: list[JsonFields] = []
        try:
            answers = replies(node)
            path = _extend_path(parent_path, node, read)
            if path[-1].role == "assistant":
                yield path
            elif not answers:
                raise Omission("no answer follows")
        except Omission as omission:
            yield omission.with_unit("messages")
        stack += [(reply, path) for reply in reversed(answers)]


def _extend_path(
    parent_path: MessagePath | None, node: JsonFields, read: Callable[[JsonFields], Message]
) -> MessagePath:
    if parent_path is None:
        raise Omission("it replies to a message that is left out")
    return (*parent_path, read(node))


def _message(node: JsonFields) -> Message:
    return make_message(node.text("role"), node.text("text"))


def _table_message(row: JsonFields) -> Message:
    if row.is_truthy("deleted"):
        raise Omission("it is marked as deleted")
    message = _message(row)
    if message.role == "assistant" and not row.has_value("parent_id"):
        raise Omission("it is an answer without a parent")
    return message


def _replies(node: JsonFields) -> list[JsonFields]:
    return node.children("replies") if node.has_value("replies") else []


def _key(row: JsonFields, name: str) -> Key:
    value = row.value(name)
    if not isinstance(value, str | int | float):
        raise Omission(f"{name} is {json_kind(value)}")
    return value
