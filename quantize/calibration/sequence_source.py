"""Sequence source: encodes the sequences of one calibration text, with a mask of counted tokens.

Each conversation is one sequence, as in Tulu's training: BOS, turns, EOS, cut on the right. A
conversation cut before its first answer is left out, as training left out examples without a loss.
Plain texts are joined and cut into disjoint windows of full length; a total shorter than one window
is one short sequence. Nothing is padded, and no two conversations share a sequence.

Source: allenai/open-instruct e44fcf588, open_instruct/finetune.py.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

from camelpress.core.documents.dataset_formats import Conversation, Document
from camelpress.core.documents.document_reader import read_corpus
from camelpress.core.errors import RecipeProblem
from camelpress.core.hub.model_location import FileLocation
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.core.text.tulu_format import encode_with_loss_mask


@dataclass(frozen=True)
class CalibrationSequence:
    """One calibration sequence.

    Args:
        ids: token ids, at least one.
        token_mask: true for tokens of plain text, of an answer or of its EOS.
        truncated: true if the text was cut.
    """

    ids: list[int]
    token_mask: list[bool]
    truncated: bool = False

    def truncate(self, length: int) -> CalibrationSequence:
        """Returns the sequence cut to at most `length` tokens."""
        if len(self.ids) <= length:
            return self
        return replace(
            self, ids=self.ids[:length], token_mask=self.token_mask[:length], truncated=True
        )


class SequenceSource:
    """Sequences of a source in the order of a seed, encoded on demand.

    Args:
        file: file in any format of `core.documents.dataset_formats`.
        tokenizer: tokenizer of the model to quantize.
        length: maximum tokens of a sequence.
        seed: seed of the order.
    Raises:
        RecipeProblem: the file holds no text.
    """

    def __init__(self, file: FileLocation, tokenizer: Tokenizer, length: int, seed: str) -> None:
        self.file = file
        self.corpus = read_corpus(file.path)
        self.sequences: list[CalibrationSequence] = []
        self.tokens = 0
        self.unanswered = 0
        self.exhausted = False
        self._length = length
        self._stream = self._shuffle_sequences(self.corpus.documents, tokenizer, seed)

    def read_tokens(self, tokens: int) -> None:
        """Encodes sequences up to a number of tokens, or to the end of the source.

        Raises:
            RecipeProblem: no conversation has an answer in its first `length` tokens.
        """
        while self.tokens < tokens and not self.exhausted:
            sample = next(self._stream, None)
            if sample is None:
                self.exhausted = True
            else:
                self.sequences.append(sample)
                self.tokens += len(sample.ids)
        if not self.sequences:
            raise RecipeProblem(
                f"none of the {self.unanswered} conversations of {self.file.path} has an answer in "
                f"its first {self._length} tokens",
                next_step="use a longer --sequence-length, or another text",
            )

    def _shuffle_sequences(
        self, documents: Iterable[Document], tokenizer: Tokenizer, seed: str
    ) -> Iterator[CalibrationSequence]:
        windows, texts = [], [text for text in documents if isinstance(text, str)]
        if texts:
            stream = list(chain.from_iterable(map(tokenizer.encode_document, texts)))
            stop = max(1, len(stream) - self._length + 1)
            starts = range(0, stop, self._length)
            windows = [stream[start : start + self._length] for start in starts]
        conversations = [document for document in documents if not isinstance(document, str)]
        items: list[Conversation | list[int]] = [*conversations, *windows]
        random.Random(seed).shuffle(items)  # noqa: S311 - a draw, not a secret
        for item in items:
            if isinstance(item, list):
                yield CalibrationSequence(item, [True] * len(item))
                continue
            sample = CalibrationSequence(*encode_with_loss_mask(item, tokenizer))
            sample = sample.truncate(self._length)
            if any(sample.token_mask):
                yield sample
            else:
                self.unanswered += 1
