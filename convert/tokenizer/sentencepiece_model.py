"""Builds a fast tokenizer with the ids of a SentencePiece tokenizer.model.

Loaders build one from such a file, too, but they skip its normalizer and rank merges differently.
This module accepts a fast tokenizer only if it agrees with SentencePiece on joined text.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import tokenizers
from google.protobuf.message import DecodeError
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import (  # type: ignore[attr-defined]
    ModelProto,  # created at import
)
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from camelpress.convert.tokenizer import tokenizer_corpus
from camelpress.core.files.file_recognizer import unreadable_file_problem
from camelpress.core.files.regular_files import read_regular
from camelpress.core.input_limits import MAX_PIECE_CHARACTERS, MAX_PIECES, MAX_TOKENIZER_MODEL_BYTES

PrependScheme = Literal["always", "first", "never"]  # parts of a text with a blank in front
MergePairs = Mapping[str, Sequence[tuple[str, str]]]  # piece to the pairs merging into it

SPACE_SYMBOL = "\u2581"
TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")  # a token in base64 and its rank
EXTRA_SPACES = Regex(f"\\A +|(?<= ) +|[ {SPACE_SYMBOL}]+\\z")
EXCLUDED_SCORE = -1e9  # score of a piece excluded from segmentation
UNIGRAM, BPE = 1, 2  # model types of SentencePiece
NORMAL, USER_DEFINED = 1, 4  # types of a piece


@dataclass(frozen=True)
class FastTokenizer:
    """Tokenizer of the tokenizers library, with its comparison to SentencePiece.

    Args:
        backend: tokenizer with SentencePiece's ids on every text of the corpus, rare texts aside.
        texts: number of compared texts.
        mismatches: number of rare texts with other ids.
        sample: texts without a leading blank to SentencePiece's ids.
    """

    backend: tokenizers.Tokenizer
    texts: int
    mismatches: int
    sample: Mapping[str, list[int]]


class SentencePieceModel:
    """Reads a tokenizer.model.

    Raises:
        CheckpointProblem: it cannot be read, or is not SentencePiece's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.content = read_regular(path, MAX_TOKENIZER_MODEL_BYTES)
            self._processor = _processor(self.content)
            _require_sane_pieces(self._processor)
            self._proto = ModelProto.FromString(self.content)
        except (OSError, RuntimeError, ValueError, DecodeError) as error:
            raise unreadable_file_problem(
                path, f"{path} is not a SentencePiece model ({_first_line(error)})"
            ) from error
        self.pieces: list[str] = [piece.piece for piece in self._proto.pieces]

    @property
    def special_ids(self) -> dict[str, int]:
        """Role to id of bos, eos and unk, without roles the model lacks."""
        model = self._processor
        ids = {"bos": model.bos_id(), "eos": model.eos_id(), "unk": model.unk_id()}
        return {role: number for role, number in ids.items() if number >= 0}

    @property
    def adds_dummy_prefix(self) -> bool:
        """True if the file puts a blank in front of a text."""
        return bool(self._proto.normalizer_spec.add_dummy_prefix)

    @property
    def is_llama(self) -> bool:
        """True if the model has all features assumed by LLaMA's class in loaders."""
        spec, trained = self._proto.normalizer_spec, self._proto.trainer_spec
        return (
            trained.model_type == BPE
            and trained.byte_fallback
            and not spec.precompiled_charsmap
            and not spec.remove_extra_whitespaces
            and spec.escape_whitespaces
            and not trained.treat_whitespace_as_suffix
            and not self._texts(USER_DEFINED)
            and self.special_ids.keys() == {"bos", "eos", "unk"}
        )

    def encode(self, texts: Sequence[str], *, blank: bool) -> list[list[int]]:
        """Encodes texts with SentencePiece, with or without a blank in front of each."""
        if blank == self.adds_dummy_prefix:
            ids: list[list[int]] = self._processor.encode(list(texts))
            return ids
        proto = ModelProto.FromString(self.content)
        proto.normalizer_spec.add_dummy_prefix = blank
        ids = _processor(proto.SerializeToString()).encode(list(texts))
        return ids

    def build_fast(self, prefix: PrependScheme) -> FastTokenizer | None:
        """Builds the fast tokenizer; returns None if its ids differ from SentencePiece's.

        Args:
            prefix: parts between special tokens with a blank in front: all, the first, or none.
                Loaders add no second blank to a first part with a leading blank, so such texts
                are not compared under `first`.
        """
        texts = self._texts_to_compare
        if prefix == "first":
            texts = [text for text in texts if not self._starts_with_space(text)]
        expected = self.encode(texts, blank=prefix != "never")
        rare_ids = self.encode(tokenizer_corpus.RARE_TEXTS, blank=prefix != "never")
        for backend in self._fast_candidates(prefix):
            if _ids(backend, texts) == expected:
                pairs = zip(_ids(backend, tokenizer_corpus.RARE_TEXTS), rare_ids, strict=True)
                mismatches = sum(ids != expected_ids for ids, expected_ids in pairs)
                self._add_special_tokens(backend)
                sample = {
                    text: ids
                    for text, ids in zip(texts, expected, strict=True)
                    if text in tokenizer_corpus.CORPUS_TEXTS and not self._starts_with_space(text)
                }
                return FastTokenizer(backend, len(texts) + len(rare_ids), mismatches, sample)
        return None

    def _fast_candidates(self, prefix: PrependScheme) -> Iterator[tokenizers.Tokenizer]:
        """Yields fast tokenizers to compare with SentencePiece."""
        kind, spec = self._proto.trainer_spec.model_type, self._proto.normalizer_spec
        if kind not in (UNIGRAM, BPE):
            return
        charsmaps: list[list[Any]] = [[]]
        if spec.precompiled_charsmap:
            # the library maps only the first character of some sequences
            lines = normalizers.Replace("\r\n", "\n\n")
            charsmap = [normalizers.NFC(), normalizers.Precompiled(spec.precompiled_charsmap)]
            charsmaps = [charsmap[1:], charsmap, [lines, *charsmap]]
        for charsmap_steps in charsmaps:
            backend = tokenizers.Tokenizer(self._bpe() if kind == BPE else self._unigram())
            steps = charsmap_steps + self._normalizers(prefix)
            backend.normalizer = normalizers.Sequence(steps)
            if steps := self._pre_tokenizers(prefix):
                backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
            backend.decoder = self._decoder(prefix)
            yield backend

    def _add_special_tokens(self, backend: tokenizers.Tokenizer) -> None:
        special = [
            piece.piece
            for piece in self._proto.pieces
            if piece.type not in (piece.NORMAL, piece.USER_DEFINED, piece.BYTE)
        ]
        backend.add_special_tokens(
            [AddedToken(text, special=True, normalized=False) for text in special]
        )

    @cached_property
    def _texts_to_compare(self) -> list[str]:
        """Corpus texts, single pieces, joined pieces, and texts with competing merges."""
        pieces = [piece.replace(SPACE_SYMBOL, " ") for piece in self._texts(NORMAL, USER_DEFINED)]
        groups = self._score_ties
        tied_pieces = [piece.replace(SPACE_SYMBOL, " ") for group in groups for piece in group]
        competing = islice(tokenizer_corpus.tie_texts(groups), tokenizer_corpus.MAX_TIE_TEXTS)
        return [
            *tokenizer_corpus.CORPUS_TEXTS,
            *pieces,
            *tokenizer_corpus.join_texts(pieces),
            *tokenizer_corpus.join_texts(tied_pieces),
            *(text.replace(SPACE_SYMBOL, " ") for text in competing),
        ]

    def _starts_with_space(self, text: str) -> bool:
        return not self._processor.normalize(text[:1]).strip(SPACE_SYMBOL)

    def _texts(self, *types: int) -> list[str]:
        return [piece.piece for piece in self._proto.pieces if piece.type in types]

    @cached_property
    def _merges_by_score(self) -> list[MergePairs]:
        """Merge pieces grouped by score, the best score first."""
        words = set(self._texts(NORMAL, USER_DEFINED))
        groups: dict[float, dict[str, list[tuple[str, str]]]] = defaultdict(dict)
        for piece in self._proto.pieces:
            if piece.type == NORMAL and (halves := list(_split_piece(piece.piece, words))):
                groups[piece.score][piece.piece] = halves
        return [groups[score] for score in sorted(groups, reverse=True)]

    @property
    def _score_ties(self) -> list[MergePairs]:
        return [group for group in self._merges_by_score if len(group) > 1]

    def _bpe(self) -> models.BPE:
        words = {piece: number for number, piece in enumerate(self.pieces)}
        merges = [pair for group in self._merges_by_score for pair in _order_merges(group)]
        return models.BPE(
            words,
            merges,
            unk_token=self.pieces[self.special_ids["unk"]],
            fuse_unk=True,
            byte_fallback=self._proto.trainer_spec.byte_fallback,
            ignore_merges=bool(self._texts(USER_DEFINED)),
        )

    def _unigram(self) -> models.Unigram:
        return models.Unigram(
            [
                (
                    piece.piece,
                    piece.score if piece.type in (NORMAL, USER_DEFINED) else EXCLUDED_SCORE,
                )
                for piece in self._proto.pieces
            ],
            self.special_ids["unk"],
            self._proto.trainer_spec.byte_fallback,
        )

    def _normalizers(self, prefix: PrependScheme) -> list[Any]:
        """Returns the steps of SentencePiece's normalizer after its table of characters.

        A normalizer adds the blank in front, because a pre-tokenizer adds none before another.
        """
        spec = self._proto.normalizer_spec
        steps: list[Any] = []
        if spec.remove_extra_whitespaces:
            steps.append(normalizers.Replace(EXTRA_SPACES, ""))
        if prefix == "always":
            steps.append(normalizers.Prepend(SPACE_SYMBOL))
        if prefix != "first":
            steps.append(normalizers.Replace(" ", SPACE_SYMBOL))
        return steps

    def _pre_tokenizers(self, prefix: PrependScheme) -> list[Any]:
        """Returns the pre-tokenizers: a blank before the first part, and whole symbols."""
        steps: list[Any] = []
        if prefix == "first":
            steps.append(
                pre_tokenizers.Metaspace(SPACE_SYMBOL, prepend_scheme="first", split=False)
            )
        if symbols := sorted(self._texts(USER_DEFINED), key=len, reverse=True):
            pattern = Regex("|".join(re.escape(symbol) for symbol in symbols))
            steps.append(pre_tokenizers.Split(pattern, "isolated"))
        return steps

    def _decoder(self, prefix: PrependScheme) -> decoders.Decoder:
        steps: list[Any] = [
            decoders.Replace(SPACE_SYMBOL, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
        ]
        if prefix != "never":
            steps.append(decoders.Strip(" ", 1, 0))
        return decoders.Sequence(steps)


def is_tiktoken(path: Path) -> bool:
    """Returns True for a list of base64 tokens with ranks, as in Meta's Llama 3."""
    try:
        with path.open("rb") as file:
            lines = list(islice(file, 3))
    except OSError:
        return False
    return bool(lines) and all(TIKTOKEN_LINE.fullmatch(line) for line in lines)


def _processor(content: bytes) -> SentencePieceProcessor:
    model = SentencePieceProcessor()
    model.LoadFromSerializedProto(content)
    return model


def _ids(backend: tokenizers.Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [
        encoding.ids for encoding in backend.encode_batch(list(texts), add_special_tokens=False)
    ]


def _split_piece(piece: str, words: set[str]) -> Iterator[tuple[str, str]]:
    for cut in range(1, len(piece)):
        if piece[:cut] in words and piece[cut:] in words:
            yield piece[:cut], piece[cut:]


def _order_merges(group: MergePairs) -> Iterator[tuple[str, str]]:
    """Orders the merges of one score.

    Among equal merges SentencePiece applies the leftmost, a fast tokenizer the first in its list.
    Each merge therefore precedes those beginning with its right half. A cycle has no correct
    order; then the order of ids stays.
    """
    if len(group) == 1:
        order = list(group)
    else:
        begins: dict[str, set[str]] = defaultdict(set)
        for piece, pairs in group.items():
            for left, _ in pairs:
                begins[left].add(piece)
        successors: dict[str, set[str]] = {piece: set() for piece in group}
        for piece, pairs in group.items():
            for _, right in pairs:
                for later in begins[right] - {piece}:
                    successors[later].add(piece)
        try:
            order = list(TopologicalSorter(successors).static_order())
        except CycleError:
            order = list(group)
    for piece in order:
        yield from group[piece]


def _first_line(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.strip() or type(error).__name__).splitlines()[0]


def _require_sane_pieces(model: SentencePieceProcessor) -> None:
    """Raises ValueError for a piece that is no text, and for too many or too long pieces."""
    count = model.get_piece_size()
    if count > MAX_PIECES:
        raise ValueError(f"it has {count:,} pieces, {MAX_PIECES:,} are the limit")
    longest = max((len(model.id_to_piece(number)) for number in range(count)), default=0)
    if longest > MAX_PIECE_CHARACTERS:
        raise ValueError(f"it has a piece of {longest:,} characters")
