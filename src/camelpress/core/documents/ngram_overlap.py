"""Fingerprints the 13-grams of calibration texts as hashes, to measure the overlap of other texts.

A word is a run of letters or digits in any case; characters between words do not count. The authors
of GPT-3 chose thirteen words, and evaluation harnesses use this length since. As there, an n-gram
in more than ten sequences is the wording of a template, not content, and is left out. A text
without blanks between words is one word to this check.

A text overlaps if at least a fifth of its n-grams, or fifty of them, are in the calibration; fifty
neighbouring n-grams span 62 words. One n-gram is not enough: of 2,000 short programs that shared
only templates with 1,000 calibration dialogues, 75 had an n-gram or more in common with them, at
most nine and at most 13 % of all, and a novel shared a quotation of 28 words. Dialogues that
differed only in a number shared 26 % and more. The authors of Llama 2 call a text clean below a
fifth of shared tokens.

A fingerprint keeps at most `MAX_HASHES` hashes, the smallest. Hashes are spread evenly, so the
smallest are a fair sample of the n-grams. A comparison with a full fingerprint looks only at
n-grams with such small hashes, and its shares are estimates.

Source: Brown et al., arXiv:2005.14165, appendix C; EleutherAI/lm-evaluation-harness,
docs/decontamination.md; Touvron et al., arXiv:2307.09288, appendix A.6. This version differs:
punctuation separates words instead of vanishing in them, so "don't" and the "do n't" of tokenized
corpora come closer, and nothing is cut out of a text.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt64
from numpy.lib import format

from camelpress.core.errors import CheckpointProblem

NGRAM_FILE = "calibration-ngrams.npy"
NGRAM_WORDS = 13  # words per n-gram
MAX_SEQUENCES = 10  # sequences with one n-gram; an n-gram of more belongs to a template
MAX_HASHES = 2**20  # hashes per fingerprint, 8 MiB
MIN_OVERLAP_SHARE, MIN_OVERLAP_NGRAMS = 0.2, 50  # share or number of shared n-grams
WORD_PATTERN = re.compile(r"[^\W_]+")

HASH_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, to keep all bits of a word
HASH_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))  # SplitMix64: shift, factor


def split_words(text: str) -> list[str]:
    """Returns the words of a text in lower case."""
    return WORD_PATTERN.findall(text.casefold())


def hash_ngrams(words: Sequence[str]) -> UInt64[np.ndarray, " ngrams"]:
    """Returns the hash of every 13-gram, in order; empty for a shorter text."""
    codes = np.array([_hash_word(word) for word in words], dtype=np.uint64)
    count = max(0, len(codes) - NGRAM_WORDS + 1)
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(NGRAM_WORDS if count else 0):
        hashes = hashes * HASH_BASE + codes[offset : offset + count]
    for shift, factor in HASH_ROUNDS:
        hashes = (hashes ^ (hashes >> np.uint64(shift))) * np.uint64(factor)
    return hashes ^ (hashes >> np.uint64(31))


@dataclass(frozen=True)
class NgramOverlap:
    """Overlap of a text with a calibration.

    Args:
        ngrams: number of 13-grams in the text.
        share: share of the 13-grams in the calibration; an estimate for a sampled fingerprint.
        first_ngram: words of the first shared 13-gram; empty without one.
    """

    ngrams: int
    share: float
    first_ngram: str

    @property
    def is_overlap(self) -> bool:
        """True if the overlap is too large for a held-out text."""
        return bool(self.first_ngram) and (
            self.share >= MIN_OVERLAP_SHARE or self.share * self.ngrams >= MIN_OVERLAP_NGRAMS
        )


@dataclass(frozen=True)
class NgramFingerprint:
    """Hashes of the 13-grams of a calibration.

    Args:
        hashes: sorted hashes without duplicates.
    """

    hashes: UInt64[np.ndarray, " hashes"]

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> NgramFingerprint:
        """Computes the fingerprint from the texts of all sequences."""
        hashes_by_text = [np.unique(hash_ngrams(split_words(text))) for text in texts]
        all_hashes = np.concatenate([np.empty(0, dtype=np.uint64), *hashes_by_text])
        hashes, counts = np.unique(all_hashes, return_counts=True)
        return cls(hashes[counts <= MAX_SEQUENCES][:MAX_HASHES])

    @property
    def is_sample(self) -> bool:
        """True if the fingerprint is full, a sample of the n-grams."""
        return len(self.hashes) == MAX_HASHES

    def measure_overlap(self, words: Sequence[str]) -> NgramOverlap:
        """Measures the overlap of a text with the calibration."""
        hashes = hash_ngrams(words)
        is_sampled = (
            hashes <= self.hashes[-1] if self.is_sample else np.ones(len(hashes), dtype=bool)
        )
        ends = np.searchsorted(self.hashes, hashes, side="right")
        # np.isin would sort all hashes at every call
        is_shared = ends > np.searchsorted(self.hashes, hashes)
        first = int(is_shared.argmax()) if is_shared.any() else None
        return NgramOverlap(
            ngrams=len(hashes),
            share=float(is_shared.sum()) / max(1, int(is_sampled.sum())),
            first_ngram=" ".join(words[first : first + NGRAM_WORDS]) if first is not None else "",
        )

    def write(self, path: Path) -> None:
        """Writes the hashes as a NumPy array of 64-bit little-endian numbers."""
        np.save(path, self.hashes.astype("<u8"), allow_pickle=False)

    @classmethod
    def read(cls, path: Path) -> NgramFingerprint:
        """Reads a fingerprint written by `write`.

        Raises:
            CheckpointProblem: the file cannot be read, or is no fingerprint.
        """
        try:
            with path.open("rb") as file:
                version = format.read_magic(file)
                shape, _, dtype = format.read_array_header_1_0(file)
                if version != (1, 0) or dtype != np.dtype("<u8") or len(shape) != 1:
                    raise _fingerprint_problem(path, "it is no list of 64-bit numbers")
                content = np.frombuffer(file.read(8 * MAX_HASHES + 1), dtype="u1")
        except (OSError, ValueError) as error:
            raise _fingerprint_problem(path, type(error).__name__) from error
        if len(content) != 8 * shape[0]:
            raise _fingerprint_problem(path, "it has another length than it says")
        hashes = content.view("<u8").astype(np.uint64)
        if not bool((hashes[:-1] < hashes[1:]).all()):
            raise _fingerprint_problem(path, "it is not sorted")
        return cls(hashes)


def _fingerprint_problem(path: Path, reason: str) -> CheckpointProblem:
    return CheckpointProblem(
        f"{path} is not a fingerprint of a calibration ({reason})",
        next_step="quantize again, or remove it: then overlap is not checked",
    )


@lru_cache(maxsize=2**16)
def _hash_word(word: str) -> int:
    digest = hashlib.blake2b(word.encode("utf-8", errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
