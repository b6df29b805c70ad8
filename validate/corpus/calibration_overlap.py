"""Whether what is scored is held out: no text may share its words with the calibration.

The quantizer leaves a fingerprint of its calibration beside the weights (`core.ngrams`). Each
sequence that is scored is held against it. A candidate without one - rounded without calibration,
made by another program, or a release, which does not ship it - cannot be checked, and the report
says so.
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
    texts: Sequence[HeldOutText], tokenizer: Tokenizer, candidate: Path, *, allowed: bool
) -> dict[str, Any]:
    """Hold every sequence against the candidate's calibration.

    Args:
        texts: that are scored.
        tokenizer: that encoded them.
        candidate: folder of the quantized model.
        allowed: go on where texts overlap.
    Returns:
        `checked`, the hash of the fingerprint, and for each text how many of its sequences are
        long enough to tell, share a run of words with the calibration, and share too many.
    Raises:
        RecipeProblem: a sequence overlaps, and that is not allowed.
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
        "texts": [_text(text, tokenizer, fingerprint, allowed=allowed) for text in texts],
    }


def _text(
    text: HeldOutText, tokenizer: Tokenizer, fingerprint: NgramFingerprint, *, allowed: bool
) -> dict[str, Any]:
    found = [
        fingerprint.measure_overlap(split_words(tokenizer.decode_text(ids)))
        for ids in text.sequences
    ]
    over = [number for number, each in enumerate(found, start=1) if each.is_overlap]
    if over:
        first = found[over[0] - 1]
        told = (
            f"{text.name} overlaps the calibration in {len(over)} of {len(found)} sequences; "
            f"of sequence {over[0]} {first.share:.0%} of all runs of {NGRAM_WORDS} words "
            "are in it, "
            f'first "{first.first_ngram}"'
        )
        if not allowed:
            raise RecipeProblem(
                told,
                next_step="score a text that was held out, calibrate without this one, or give "
                "--allow-overlap",
            )
        note(told)
    return {
        "name": text.name,
        "sequences": len(found),
        "long_enough": sum(bool(each.ngrams) for each in found),
        "sharing": sum(bool(each.first_ngram) for each in found),
        "overlapping": len(over),
    }
