"""Held-out texts as windows of tokens, and which predictions in them count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from camelpress.core.documents import read_documents, require_own_names
from camelpress.core.errors import RecipeProblem
from camelpress.core.provenance import sha256_file
from camelpress.core.tokens import Tokenizer
from camelpress.validate.protocols import BLANKS, PROTOCOLS, Request, Window
from camelpress.validate.settings import Scoring


@dataclass(frozen=True)
class Text:
    """A text as its protocol cuts it.

    Args:
        words, bytes: of what is scored, as lm-evaluation-harness counts them; 0 elsewhere.
    """

    name: str
    sha256: str
    windows: list[Window]
    words: int = 0
    bytes: int = 0

    @property
    def sequences(self) -> list[list[int]]:
        """The ids of each window."""
        return [window.ids for window in self.windows]


def window_length(settings: Scoring, positions: int) -> int:
    """Tokens of a window: as asked, or as the protocol has it, and never more than positions."""
    asked = settings.sequence_length or PROTOCOLS[settings.protocol].length or positions
    return min(asked, positions)


def read_texts(settings: Scoring, tokenizer: Tokenizer, length: int) -> list[Text]:
    """Every text of the settings, in windows of at most `length` tokens.

    Raises:
        RecipeProblem: there is none, two have one name, one is too short to score a token, or is
            not what the protocol is for.
    """
    if not settings.text:
        raise RecipeProblem("there is no text to score", next_step="give --text FILE")
    require_own_names([path.name for path in settings.text])
    return [_text(path, settings, tokenizer, length) for path in settings.text]


def _text(path: Path, settings: Scoring, tokenizer: Tokenizer, length: int) -> Text:
    protocol = PROTOCOLS[settings.protocol]
    documents = read_documents(path)
    plain = [document for document in documents if isinstance(document, str)]
    if protocol.plain and len(plain) < len(documents):
        raise RecipeProblem(
            f"{path} holds conversations, which the protocol {settings.protocol} has no form for",
            next_step="use --protocol documents, or give a plain text",
        )
    if settings.assistant_only and (protocol.plain or plain):
        raise RecipeProblem(
            f"{path} holds plain text, in which no assistant speaks",
            next_step="leave out --assistant-only, or give conversations and --protocol documents",
        )
    cut = protocol.cut(
        Request(documents, tokenizer, length, settings.max_tokens, settings.assistant_only)
    )
    windows = [window for window in cut.windows if any(window.counted)]
    if not windows:
        raise RecipeProblem(_too_short(path, settings, length), next_step="give a longer text")
    return Text(path.name, sha256_file(path), windows, *_sizes(cut.scored))


def _too_short(path: Path, settings: Scoring, length: int) -> str:
    least = PROTOCOLS[settings.protocol].windows
    if settings.assistant_only:
        return f"{path} has no answer within the first {length} tokens of a conversation"
    if least:
        return (
            f"{path} has fewer than the {least * length} tokens that the protocol "
            f"{settings.protocol} needs"
        )
    return f"{path} has no two tokens in a row"


def _sizes(scored: Sequence[str]) -> tuple[int, int]:
    """Words and bytes as lm-evaluation-harness counts them, pieces between blanks."""
    return (
        sum(len(BLANKS.split(each)) for each in scored),
        sum(len(each.encode("utf-8")) for each in scored),
    )
