"""Checks that scored texts are held out: none may overlap the calibration of the candidate.

The quantizer leaves a fingerprint of its calibration beside the weights
(`core.documents.ngram_overlap`). Every scored sequence is compared with it. A candidate without a
fingerprint cannot be checked, and the report says so: it was rounded without calibration, made by
another program, or released without the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from camelpress.core.documents.ngram_overlap import (
    NGRAM_FILE,
    NGRAM_WORDS,
    NgramFingerprint,
    split_words,
)
from camelpress.core.errors import RecipeProblem
from camelpress.core.files.file_hashes import sha256_file
from camelpress.core.progress import note
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.validate.corpus.held_out_text import HeldOutText


def check_calibration_overlap(
    texts: Sequence[HeldOutText], tokenizer: Tokenizer, candidate: Path, *, allow_overlap: bool
) -> dict[str, Any]:
    """Compares every scored sequence with the calibration of the candidate.

    Args:
        texts: the scored texts.
        tokenizer: the tokenizer of the texts.
        candidate: folder of the quantized model.
        allow_overlap: note an overlap and continue.
    Returns:
        `checked`, the SHA-256 of the fingerprint, and for each text the number of its sequences,
        of those long enough for a check, of those with a run of words in the calibration, and of
        those that overlap.
    Raises:
        RecipeProblem: a sequence overlaps the calibration, and that is not allowed.
        CheckpointProblem: the fingerprint cannot be read.
    """
    path = candidate / NGRAM_FILE
    if not path.is_file():
        note(f"{candidate} has no {NGRAM_FILE}: overlap with its calibration is not checked")
        return {"checked": False, "fingerprint": None, "texts": []}
    fingerprint = NgramFingerprint.read(path)
    return {
        "checked": True,
        "fingerprint": sha256_file(path),
        "texts": [
            _text_overlap(text, tokenizer, fingerprint, allow_overlap=allow_overlap)
            for text in texts
        ],
    }


def _text_overlap(
    text: HeldOutText, tokenizer: Tokenizer, fingerprint: NgramFingerprint, *, allow_overlap: bool
) -> dict[str, Any]:
    """Returns the overlap of one text, for the report."""
    overlaps = [
        fingerprint.measure_overlap(split_words(tokenizer.decode_text(ids)))
        for ids in text.sequences
    ]
    overlap_numbers = [
        number for number, overlap in enumerate(overlaps, start=1) if overlap.is_overlap
    ]
    if overlap_numbers:
        first = overlaps[overlap_numbers[0] - 1]
        message = (
            f"{text.name} overlaps the calibration in {len(overlap_numbers)} of {len(overlaps)} "
            f"sequences; sequence {overlap_numbers[0]} shares {first.share:.0%} of its runs of "
            f'{NGRAM_WORDS} words with it, first "{first.first_ngram}"'
        )
        if not allow_overlap:
            raise RecipeProblem(
                message,
                next_step="score a text that was held out, calibrate without this one, or give "
                "--allow-overlap",
            )
        note(message)
    return {
        "name": text.name,
        "sequences": len(overlaps),
        "long_enough": sum(bool(overlap.ngrams) for overlap in overlaps),
        "sharing": sum(bool(overlap.first_ngram) for overlap in overlaps),
        "overlapping": len(overlap_numbers),
    }
