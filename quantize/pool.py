"""What one source of calibration text offers: its sequences, each token with whether it counts.

A conversation is a sequence of its own, as in Tulu's training: BOS, turns, EOS, cut on the right.
One that is cut before its first answer is left out, as training left out examples without a loss.
Plain texts are joined and cut into disjoint windows of full length; what is shorter than a window
in all is one short sequence. Nothing is padded, and no two conversations share a sequence.

Source: allenai/open-instruct e44fcf588, open_instruct/finetune.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from camelpress.core.documents import encode_document_counted, read_documents
from camelpress.core.errors import RecipeProblem
from camelpress.core.layouts import Document
from camelpress.core.origin import LocatedFile
from camelpress.core.prompt import Encoded
from camelpress.core.provenance import sha256_file
from camelpress.core.tokens import Tokenizer


@dataclass(frozen=True)
class Sample:
    """One sequence.

    Args:
        ids: at least one.
        counted: for each, whether it is part of a plain text, or of an answer or its EOS.
        truncated: whether the conversation goes on after it.
    """

    ids: list[int]
    counted: list[bool]
    truncated: bool = False

    def cut(self, length: int) -> Sample:
        """The same, at most so many tokens long."""
        if len(self.ids) <= length:
            return self
        return replace(self, ids=self.ids[:length], counted=self.counted[:length], truncated=True)


@dataclass(frozen=True)
class Pool:
    """All sequences of a source.

    Args:
        name: of the source in reports.
        sha256: of its file.
        documents: that the file holds.
        unanswered: those of them that are left out, because they are cut before an answer begins.
    """

    name: str
    sha256: str
    documents: int
    unanswered: int
    samples: list[Sample]

    @property
    def tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(len(sample.ids) for sample in self.samples)


def read_pool(file: LocatedFile, tokenizer: Tokenizer, length: int) -> Pool:
    """The sequences of a file, in its order.

    Args:
        file: in any layout of `core.layouts`.
        tokenizer: of the model to quantize.
        length: tokens of a sequence at most.
    Raises:
        RecipeProblem: the file holds no text, or no conversation that is answered in that length.
    """
    documents = read_documents(file.path)
    cut = [
        _sample(document, tokenizer).cut(length)
        for document in documents
        if not isinstance(document, str)
    ]
    answered = [sample for sample in cut if any(sample.counted)]
    samples = [*answered, *_windows(documents, tokenizer, length)]
    if not samples:
        raise RecipeProblem(
            f"none of the {len(cut)} conversations of {file.path} has an answer in its first "
            f"{length} tokens",
            next_step="use a longer --sequence-length, or another text",
        )
    return Pool(
        file.name, sha256_file(file.path), len(documents), len(cut) - len(answered), samples
    )


def _sample(document: Document, tokenizer: Tokenizer) -> Sample:
    found: Encoded = encode_document_counted(document, tokenizer)
    return Sample(found.ids, found.counted)


def _windows(documents: Iterable[Document], tokenizer: Tokenizer, length: int) -> Iterator[Sample]:
    stream: list[int] = []
    for document in documents:
        if isinstance(document, str):
            stream += tokenizer.encode_document(document)
    starts = range(0, len(stream) - length + 1, length) if len(stream) >= length else [0]
    for start in starts if stream else []:
        ids = stream[start : start + length]
        yield Sample(ids, [True] * len(ids))
