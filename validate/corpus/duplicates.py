"""Pieces of text that repeat another one: they are no evidence of their own.

A row that stands in a file 300 times, or a text that says the same again, has many sequences and
one piece of evidence. A copy joins the piece that it is a copy of. So does a piece of which
`KNOWN` of all predictions stand in longer pieces or before it, and half of them in one of these:
a beginning of it, the same rows cut elsewhere, a copy with a word changed or a number before it.
A prediction is the same if the token that came is, and the `CONTEXT` tokens before it; then the
predictions of these tokens stand there, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, UInt64
from numpy import ndarray
from numpy.lib.stride_tricks import sliding_window_view

from camelpress.validate.corpus.protocols import TokenWindow

CONTEXT_TOKENS = 16  # tokens before a prediction
DUPLICATE_SHARE = 0.75  # share of the predictions of a piece
HASH_SEED = 1_965


def merge_duplicates(windows: Sequence[TokenWindow], pieces: Sequence[int]) -> list[int]:
    """The piece of text that each window counts for, once repeated pieces are joined.

    Args:
        windows: of all texts.
        pieces: the number of the document or window that each belongs to, from 0.
    Returns:
        numbers among `pieces`.
    """
    keys = [_prediction_hashes(window) for window in windows]
    starts = np.cumsum([0, *(len(window.ids) + CONTEXT_TOKENS for window in windows)])
    places = [
        start + np.flatnonzero(window.score_mask)
        for start, window in zip(starts, windows, strict=False)
    ]
    owner_of, key = np.unique(np.concatenate(keys), return_inverse=True)
    piece = np.repeat(pieces, [len(each) for each in keys])
    owner = np.full(len(owner_of), -1, dtype=np.int64)  # of each prediction, its first piece
    order = np.argsort(piece, kind="stable")
    sizes = np.bincount(piece)
    ends = sizes.cumsum()[:-1]
    members, place = np.split(key[order], ends), np.split(np.concatenate(places)[order], ends)
    originals: dict[bytes, int] = {}  # by all predictions of a piece
    root = np.arange(len(sizes))
    for number in np.argsort(-sizes, kind="stable"):
        own = members[number]
        near = _find_original(_extend_to_context(owner[own], place[number]), int(number))
        root[number] = originals.setdefault(own.tobytes(), near)
        owner[own[owner[own] < 0]] = root[number]
    return [int(root[each]) for each in pieces]


def _find_original(owners: Int64[ndarray, " predictions"], number: int) -> int:
    """The piece that this one repeats for the most part, or its own number.

    Args:
        owners: the piece in which each prediction stands first; -1 for this one.
        number: of this piece.
    """
    known = owners[owners >= 0]
    if len(known) < DUPLICATE_SHARE * len(owners):
        return number
    names, counts = np.unique(known, return_counts=True)
    return int(names[counts.argmax()]) if counts.max() >= len(owners) / 2 else number


def _extend_to_context(
    owners: Int64[ndarray, " predictions"], places: Int64[ndarray, " predictions"]
) -> Int64[ndarray, " predictions"]:
    """The same owners, and those of the context of each known prediction.

    Args:
        owners: the piece in which each prediction stands first; -1 for none.
        places: of the predictions; those of different windows lie farther apart than a context.
    """
    last = len(owners) - 1
    known = np.where(owners >= 0, np.arange(len(owners)), last)
    following = np.minimum.accumulate(known[::-1])[::-1]
    is_context = (owners < 0) & (places[following] - places <= CONTEXT_TOKENS)
    return np.where(is_context, owners[following], owners)


def _prediction_hashes(window: TokenWindow) -> UInt64[ndarray, " predictions"]:
    """A hash of each prediction that counts: of its context and the token that came."""
    ids = np.array([0] * CONTEXT_TOKENS + [token + 1 for token in window.ids], dtype=np.uint64)
    weights = np.random.default_rng(HASH_SEED).integers(
        2**63, size=CONTEXT_TOKENS + 1, dtype=np.uint64
    )
    hashes = (sliding_window_view(ids, CONTEXT_TOKENS + 1) * (2 * weights + 1)).sum(axis=1)
    return hashes[np.array(window.score_mask)]
