"""Which runs of 13 words a calibration holds, as a file of hashes to hold other texts against.

A word is a run of letters or digits, whatever its case; what stands between words does not count.
Thirteen words are the length that GPT-3's authors settled on and that evaluation harnesses use
since. As there, a run that comes in more than ten sequences is the wording of a template, not
content, and is left out. A text that writes no blanks between words is one word to this check.

A text overlaps if a fifth of its runs are in the calibration, or fifty of them; fifty neighbouring
runs are 62 words. One run is not enough: of 2,000 short programs that shared nothing with 1,000
calibration dialogues but templates, 75 had a run or more in common with them, at most nine and at
most 13 % of all, and a novel shared a quotation of 28 words. Dialogues that were the same but for a
number shared 26 % and more. Llama 2's authors call a text clean below a fifth of shared tokens.

At most `LIMIT` hashes are kept, the smallest. Hashes are spread evenly, so those are a fair sample
of the runs; of a text that is held against a full fingerprint, the runs with such small hashes are
looked at, and the shares found are estimates.

Source: Brown et al., arXiv:2005.14165, appendix C; EleutherAI/lm-evaluation-harness,
docs/decontamination.md; Touvron et al., arXiv:2307.09288, appendix A.6. Ours differs: punctuation
separates words instead of vanishing in them, so that "don't" and the "do n't" of tokenized corpora
come closer, and nothing is cut out of a text.
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
NGRAM_WORDS = 13  # words
MAX_SEQUENCES = 10  # sequences; a run in more of them is a template's
MAX_HASHES = 2**20  # hashes, 8 MiB
MIN_OVERLAP_SHARE, MIN_OVERLAP_NGRAMS = 0.2, 50  # of a text's runs; either is an overlap
WORD_PATTERN = re.compile(r"[^\W_]+")

HASH_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no word's bits are lost
HASH_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))  # of SplitMix64


def split_words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return WORD_PATTERN.findall(text.casefold())


def hash_ngrams(words: Sequence[str]) -> UInt64[np.ndarray, " hash_ngrams"]:
    """The hash of every run of 13 words, in order; none for a text that is shorter."""
    codes = np.array([_hash_word(word) for word in words], dtype=np.uint64)
    count = max(0, len(codes) - NGRAM_WORDS + 1)
    found = np.zeros(count, dtype=np.uint64)
    for place in range(NGRAM_WORDS if count else 0):
        found = found * HASH_BASE + codes[place : place + count]
    for shift, factor in HASH_ROUNDS:
        found = (found ^ (found >> np.uint64(shift))) * np.uint64(factor)
    return found ^ (found >> np.uint64(31))


@dataclass(frozen=True)
class NgramOverlap:
    """What of a text is in a calibration.

    Args:
        runs: of 13 words, in the text.
        share: of them in the calibration; an estimate where the fingerprint is a sample.
        first: the first such run, as words; empty where there is none.
    """

    ngrams: int
    share: float
    first_ngram: str

    @property
    def is_overlap(self) -> bool:
        """Whether that is too much to call the text held out."""
        return bool(self.first_ngram) and (
            self.share >= MIN_OVERLAP_SHARE or self.share * self.ngrams >= MIN_OVERLAP_NGRAMS
        )


@dataclass(frozen=True)
class NgramFingerprint:
    """The runs of a calibration.

    Args:
        hashes: sorted, no two alike.
    """

    hashes: UInt64[np.ndarray, " hashes"]

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> NgramFingerprint:
        """The fingerprint of the texts of all sequences."""
        each = [np.unique(hash_ngrams(split_words(text))) for text in texts]
        found = np.concatenate([np.empty(0, dtype=np.uint64), *each])
        hashes, counts = np.unique(found, return_counts=True)
        return cls(hashes[counts <= MAX_SEQUENCES][:MAX_HASHES])

    @property
    def is_sample(self) -> bool:
        """Whether there were more runs than are kept."""
        return len(self.hashes) == MAX_HASHES

    def measure_overlap(self, words: Sequence[str]) -> NgramOverlap:
        """How much of a text is in the calibration."""
        own = hash_ngrams(words)
        judged = own <= self.hashes[-1] if self.is_sample else np.ones(len(own), dtype=bool)
        ends = np.searchsorted(self.hashes, own, side="right")
        held = ends > np.searchsorted(self.hashes, own)  # np.isin would sort all of them each time
        first = int(held.argmax()) if held.any() else None
        return NgramOverlap(
            ngrams=len(own),
            share=float(held.sum()) / max(1, int(judged.sum())),
            first_ngram=" ".join(words[first : first + NGRAM_WORDS]) if first is not None else "",
        )

    def write(self, path: Path) -> None:
        """Save as a NumPy array of 64-bit numbers, low byte first."""
        np.save(path, self.hashes.astype("<u8"), allow_pickle=False)

    @classmethod
    def read(cls, path: Path) -> NgramFingerprint:
        """Load what `write` saved.

        Raises:
            CheckpointProblem: it cannot be read, or is something else.
        """
        try:
            with path.open("rb") as file:
                version = format.read_magic(file)
                shape, _, dtype = format.read_array_header_1_0(file)
                if version != (1, 0) or dtype != np.dtype("<u8") or len(shape) != 1:
                    raise _fingerprint_problem(path, "it is no list of 64-bit numbers")
                found = np.frombuffer(file.read(8 * MAX_HASHES + 1), dtype="u1")
        except (OSError, ValueError) as error:
            raise _fingerprint_problem(path, type(error).__name__) from error
        if len(found) != 8 * shape[0]:
            raise _fingerprint_problem(path, "it has another length than it says")
        hashes = found.view("<u8").astype(np.uint64)
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
