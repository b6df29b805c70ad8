"""Calibration: documents to token sequences, drawn by seed up to a budget of tokens.

A conversation is a sequence of its own, as in Tulu's training: BOS, turns, EOS, cut on the right.
Plain texts are joined and cut into disjoint windows of full length. Nothing is padded.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from camelpress.core.documents import encode_document, read_documents, require_own_names
from camelpress.core.errors import RecipeProblem
from camelpress.core.layouts import Document
from camelpress.core.progress import note
from camelpress.core.prompt import encode
from camelpress.core.tokens import Tokenizer


@dataclass(frozen=True)
class Calibration:
    """The sequences, and how many of them are conversations cut to the sequence length."""

    sequences: list[list[int]]
    truncated: int

    @property
    def tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(map(len, self.sequences))


def draw(
    files: Sequence[Path], tokenizer: Tokenizer, *, samples: int, sequence_length: int, seed: int
) -> Calibration:
    """Draw sequences from files until `samples * sequence_length` tokens are there.

    Args:
        files: in any layout of `core.documents`.
        tokenizer: of the model to quantize.
        samples: number of full sequences' worth of tokens.
        sequence_length: tokens; at most the positions of the model.
        seed: the same seed draws the same sequences.
    Raises:
        RecipeProblem: there are no files, or they hold no text.
    """
    if not files:
        raise RecipeProblem(
            "there is no calibration text", next_step="give --calibration FILE, or --method rtn"
        )
    require_own_names([path.name for path in files])
    documents = [document for path in files for document in read_documents(path)]
    pool = [*_conversations(documents, tokenizer), *_windows(documents, tokenizer, sequence_length)]
    random.Random(seed).shuffle(pool)  # noqa: S311 - a draw, not a secret
    budget = samples * sequence_length
    drawn: list[list[int]] = []
    truncated = 0
    for ids in pool:
        if budget <= 0:
            break
        drawn.append(ids[: min(sequence_length, budget)])
        truncated += len(ids) > sequence_length
        budget -= len(drawn[-1])
    if budget > 0:
        note(
            f"calibration holds {samples * sequence_length - budget} tokens, fewer than the "
            f"{samples} x {sequence_length} asked for"
        )
    return Calibration(drawn, truncated)


def _conversations(documents: Iterable[Document], tokenizer: Tokenizer) -> Iterable[list[int]]:
    for document in documents:
        if not isinstance(document, str):
            yield encode(document, tokenizer)


def _windows(documents: Iterable[Document], tokenizer: Tokenizer, length: int) -> list[list[int]]:
    stream: list[int] = []
    for document in documents:
        if isinstance(document, str):
            stream += encode_document(document, tokenizer)
    if len(stream) < length:
        return [stream] if stream else []
    return [stream[start : start + length] for start in range(0, len(stream) - length + 1, length)]
