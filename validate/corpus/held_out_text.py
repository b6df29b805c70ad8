"""Held-out texts as windows of tokens, and which predictions in them count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from camelpress.core.documents.document_reader import read_corpus, require_own_names
from camelpress.core.documents.omissions import Counts, describe_omissions, merge_counts
from camelpress.core.errors import RecipeProblem
from camelpress.core.progress import note
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.validate.corpus.protocols import BLANKS, PROTOCOLS, Request, Window
from camelpress.validate.settings import Scoring


@dataclass(frozen=True)
class Text:
    """A text as its protocol cuts it.

    Args:
        words, bytes: of what is scored, as lm-evaluation-harness counts them; 0 elsewhere.
        rows: of the file; 1 where it is prose.
        omissions: what is left out of the file, counted by unit and reason.
    """

    name: str
    sha256: str
    windows: list[Window]
    words: int = 0
    bytes: int = 0
    rows: int = 0
    omissions: Counts = field(default_factory=dict)

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
    corpus = read_corpus(path)
    documents = corpus.documents
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
        Request(path, documents, tokenizer, length, settings.max_tokens, settings.assistant_only)
    )
    windows = [window for window in cut.windows if any(window.counted)]
    if not windows:
        raise RecipeProblem(_too_short(path, settings, length), next_step="give a longer text")
    omissions = merge_counts([corpus.omissions, _unscored(path, len(cut.windows) - len(windows))])
    sizes = _sizes(cut.scored)
    return Text(path.name, corpus.sha256, windows, *sizes, corpus.rows, omissions)


def _unscored(path: Path, windows: int) -> Counts:
    """Counts and notes the windows without a token to score."""
    if not windows:
        return {}
    counts = {"windows": {"no answer lies in it": windows}}
    note(f"{path}: left out {describe_omissions(counts, 0)}")
    return counts


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
