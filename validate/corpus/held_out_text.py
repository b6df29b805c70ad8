"""Reads held-out texts as windows of tokens with a mask of the scored predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from camelpress.core.documents.document_reader import read_corpus, require_unique_names
from camelpress.core.documents.omissions import OmissionCounts, describe_omissions, merge_counts
from camelpress.core.errors import RecipeProblem
from camelpress.core.progress import note
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.validate.corpus.protocols import PROTOCOLS, WHITESPACE, TokenWindow, WindowRequest
from camelpress.validate.settings import ScoringSettings


@dataclass(frozen=True)
class HeldOutText:
    """A held-out text, cut into windows by its protocol.

    Args:
        name: file name of the text.
        sha256: hash of the file.
        windows: windows with at least one scored prediction.
        word_count, byte_count: size of the scored text by the rules of lm-evaluation-harness; 0 for
            other protocols.
        row_count: rows of the file; 1 for prose.
        omissions: parts left out of the file, counted by unit and reason.
    """

    name: str
    sha256: str
    windows: list[TokenWindow]
    word_count: int = 0
    byte_count: int = 0
    row_count: int = 0
    omissions: OmissionCounts = field(default_factory=dict)

    @property
    def sequences(self) -> list[list[int]]:
        """Token ids of each window."""
        return [window.ids for window in self.windows]


def window_length(settings: ScoringSettings, positions: int) -> int:
    """Returns the tokens per window, at most `positions`.

    The setting has precedence over the default of the protocol.
    """
    length = settings.sequence_length or PROTOCOLS[settings.protocol].window_length or positions
    return min(length, positions)


def read_held_out_texts(
    settings: ScoringSettings, tokenizer: Tokenizer, length: int
) -> list[HeldOutText]:
    """Reads every text of the settings in windows of at most `length` tokens.

    Raises:
        RecipeProblem: there is no text, two texts have the same name, one is too short to score a
            token, or its kind does not fit the protocol.
    """
    if not settings.text:
        raise RecipeProblem("there is no text to score", next_step="give --text FILE")
    require_unique_names([path.name for path in settings.text])
    return [_read_held_out_text(path, settings, tokenizer, length) for path in settings.text]


def _read_held_out_text(
    path: Path, settings: ScoringSettings, tokenizer: Tokenizer, length: int
) -> HeldOutText:
    protocol = PROTOCOLS[settings.protocol]
    corpus = read_corpus(path)
    documents = corpus.documents
    plain_texts = [document for document in documents if isinstance(document, str)]
    if protocol.is_plain_text_only and len(plain_texts) < len(documents):
        raise RecipeProblem(
            f"{path} holds conversations, and protocol {settings.protocol} takes plain text only",
            next_step="use --protocol documents, or give a plain text",
        )
    if settings.assistant_only and (protocol.is_plain_text_only or plain_texts):
        raise RecipeProblem(
            f"{path} holds plain text without turns of an assistant",
            next_step="leave out --assistant-only, or give conversations and --protocol documents",
        )
    cut = protocol.cut(
        WindowRequest(
            path, documents, tokenizer, length, settings.max_tokens, settings.assistant_only
        )
    )
    windows = [window for window in cut.windows if any(window.score_mask)]
    if not windows:
        raise RecipeProblem(
            _explain_short_text(path, settings, length), next_step="give a longer text"
        )
    omissions = merge_counts(
        [corpus.omissions, _note_unscored_windows(path, len(cut.windows) - len(windows))]
    )
    sizes = _count_words_and_bytes(cut.counted_text)
    return HeldOutText(path.name, corpus.sha256, windows, *sizes, corpus.rows, omissions)


def _note_unscored_windows(path: Path, windows: int) -> OmissionCounts:
    """Counts windows without a scored token and prints a note about them."""
    if not windows:
        return {}
    counts = {"windows": {"no answer lies in it": windows}}
    note(f"{path}: left out {describe_omissions(counts, 0)}")
    return counts


def _explain_short_text(path: Path, settings: ScoringSettings, length: int) -> str:
    min_windows = PROTOCOLS[settings.protocol].min_windows
    if settings.assistant_only:
        return f"{path} has no answer within the first {length} tokens of a conversation"
    if min_windows:
        return (
            f"{path} has fewer than the {min_windows * length} tokens that the protocol "
            f"{settings.protocol} needs"
        )
    return f"{path} has no two tokens in a row"


def _count_words_and_bytes(scored: Sequence[str]) -> tuple[int, int]:
    """Counts words and bytes as lm-evaluation-harness does: words are separated by whitespace."""
    return (
        sum(len(WHITESPACE.split(text)) for text in scored),
        sum(len(text.encode("utf-8")) for text in scored),
    )
