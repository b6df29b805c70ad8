"""What one source of calibration text offers: its sequences, each token with whether it counts.

A conversation is a sequence of its own, as in Tulu's training: BOS, turns, EOS, cut on the right.
One that is cut before its first answer is left out, as training left out examples without a loss.
Plain texts are joined and cut into disjoint windows of full length; what is shorter than a window
in all is one short sequence. Nothing is padded, and no two conversations share a sequence.

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
    """One sequence.

    Args:
        ids: at least one.
        counted: for each, whether it is part of a plain text, or of an answer or its EOS.
        truncated: whether its text goes on where it was cut.
    """

    ids: list[int]
    token_mask: list[bool]
    truncated: bool = False

    def truncate(self, length: int) -> CalibrationSequence:
        """The same, at most so many tokens long."""
        if len(self.ids) <= length:
            return self
        return replace(
            self, ids=self.ids[:length], token_mask=self.token_mask[:length], truncated=True
        )


class SequenceSource:
    """The sequences of a source, in an order that a seed decides, encoded as they are asked for.

    Args:
        file: in any layout of `core.layouts`.
        tokenizer: of the model to quantize.
        length: tokens of a sequence at most.
        seed: of the order.
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
        """Take sequences until there are so many tokens, or no sequence is left.

        Raises:
            RecipeProblem: not one sequence was left, as no conversation is answered in its length.
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
            last = max(1, len(stream) - self._length + 1)
            windows = [stream[at : at + self._length] for at in range(0, last, self._length)]
        talks = [talk for talk in documents if not isinstance(talk, str)]
        pool: list[Conversation | list[int]] = [*talks, *windows]
        random.Random(seed).shuffle(pool)  # noqa: S311 - a draw, not a secret
        for each in pool:
            if isinstance(each, list):
                yield CalibrationSequence(each, [True] * len(each))
                continue
            sample = CalibrationSequence(*encode_with_loss_mask(each, tokenizer)).truncate(
                self._length
            )
            if any(sample.token_mask):
                yield sample
            else:
                self.unanswered += 1
